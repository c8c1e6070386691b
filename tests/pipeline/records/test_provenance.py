"""Test `records.provenance`: the revision of the code comes from git, and is None without git."""

import os
import subprocess

import pytest

from pipeline.records.provenance import git_state

IDENTITY = ("-c", "user.name=me", "-c", "user.email=me@host")


@pytest.fixture
def file(tmp_path):
    """Return a file in a repository of one commit."""
    file = tmp_path / "repository" / "code.py"
    file.parent.mkdir()
    file.write_text("1")
    for words in (("init", "-q"), ("add", "."), (*IDENTITY, "commit", "-qm", "x")):
        subprocess.run(["git", *words], cwd=file.parent, check=True)
    return file


def change(file, monkeypatch):
    file.write_text("2")


def give_away(file, monkeypatch):
    if os.geteuid():
        pytest.skip("only root can change the owner of a directory")
    for path in (file.parent, file.parent / ".git"):
        os.chown(path, 65534, -1)


def damage(file, monkeypatch):
    (file.parent / ".git" / "index").write_text("no index")


def remove_git(file, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")


def name_another(file, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(file.parents[1]))


@pytest.mark.parametrize(
    ("happens", "revision", "dirty"),
    [
        (lambda *_: None, True, False),
        (change, True, True),
        (name_another, True, False),
        (give_away, False, None),
        (damage, False, None),
        (remove_git, False, None),
    ],
)
def test_the_revision_is_unknown_where_git_fails(file, monkeypatch, happens, revision, dirty):
    happens(file, monkeypatch)
    found = git_state(file)
    assert (found["revision"] is not None, found["dirty"]) == (revision, dirty)


def test_a_file_that_git_does_not_track_has_no_revision(file, tmp_path):
    for other in (file.with_name("other.py"), tmp_path / "other.py"):
        other.write_text("1")
        assert git_state(other) == {"revision": None, "dirty": False}
