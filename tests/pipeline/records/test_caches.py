"""Test `records.caches`: no library keeps its cache in a HOME that is not writable."""

import os

import pytest

from pipeline import tracking
from pipeline.records import caches


@pytest.fixture
def settled(monkeypatch, tmp_path):
    """Return a function that settles the caches for a HOME, and returns the variables it has set.

    None stands for an unset HOME. The user id has no entry in the password database.
    """

    def call(home, **more):
        for name in ("HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_HOME", *caches.FOLDERS):
            monkeypatch.delenv(name, raising=False)
        for name, value in more.items() | ({("HOME", str(home))} if home else set()):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("os.getuid", lambda: 54321)
        caches.set_folders(tmp_path / "root")
        return {name: os.environ[name] for name in caches.FOLDERS if name in os.environ}

    return call


def test_a_writable_home_is_left_alone(settled, tmp_path):
    assert settled(tmp_path) == {}
    assert "TRITON_HOME" not in os.environ


@pytest.mark.parametrize("home", ["/nonexistent", "/dev/null", "/proc", "/sys", None])
def test_without_a_home_all_caches_are_below_the_root(settled, tmp_path, home):
    found = settled(home)
    assert found.keys() == caches.FOLDERS.keys()
    for value in (*found.values(), os.environ["TRITON_HOME"]):
        assert value.startswith(f"{tmp_path}/root/cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any folder")
def test_the_home_of_another_user_is_not_used(settled, tmp_path):
    """`sudo -u` keeps the HOME of the first user, which the second user may not read."""
    home = tmp_path / "home"
    home.mkdir(mode=0)
    assert settled(home).keys() == caches.FOLDERS.keys()


def test_without_a_writable_home_and_root_the_caches_are_in_a_temporary_folder(
    settled, monkeypatch
):
    monkeypatch.setattr(caches, "_writable", lambda folder: False)
    found = settled("/nonexistent")
    assert all(value.startswith(f"{caches._temporary()}/") for value in found.values())
    assert caches._temporary().stat().st_mode & 0o777 == 0o700


def test_only_the_cache_folder_that_home_cannot_hold_is_moved(settled, tmp_path):
    (tmp_path / ".cache").write_text("in the way")
    assert settled(tmp_path) == {"XDG_CACHE_HOME": f"{tmp_path}/root/cache/.cache"}


def test_a_cache_folder_that_the_user_set_is_kept_if_it_is_writable(settled, tmp_path):
    mine = str(tmp_path / "mine")
    found = settled("/nonexistent", XDG_CACHE_HOME=mine, XDG_DATA_HOME="/dev/null/no")
    assert found["XDG_CACHE_HOME"] == mine
    assert found["XDG_DATA_HOME"].startswith(f"{tmp_path}/root")


def test_compiled_code_is_not_looked_for_in_the_common_temporary_directory(settled, tmp_path):
    settled(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{tmp_path}/root/cache/torchinductor"


def test_wandb_keeps_its_files_with_the_run(monkeypatch, tmp_path):
    names = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert all(tracking.environment(tmp_path)[name].startswith(str(tmp_path)) for name in names)
    monkeypatch.setenv("WANDB_CACHE_DIR", "/scratch")
    assert tracking.environment(tmp_path)["WANDB_CACHE_DIR"] == "/scratch"
