"""Test that a link to a missing disk is named, and that no folder is created in its place."""

import errno
import os
from pathlib import Path

import pytest

from pipeline import cancel, status
from pipeline.compare.__main__ import main as compare_main
from pipeline.display.errors import from_os_error, unreadable
from slurm import private
from tests.runs import make_run

FOLDERS = ["", "stages", "runs", "data", "runs/x"]


@pytest.fixture
def lost(tmp_path):
    def lose(folder):
        place = tmp_path / "outputs" / folder
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(tmp_path / "disk" / "folder")
        return place

    return lose


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_launch_names_a_link_to_a_missing_disk(inside, lost, tmp_path, folder):
    place = lost(folder)
    before = sorted(tmp_path.rglob("*"))
    code, _, errors = inside("name=x", "stage=prep")
    assert (code, errors.count("\n")) == (2, 1)
    assert f"{place} is a link to {tmp_path}/disk/folder, where nothing is" in errors
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", [status, cancel])
@pytest.mark.parametrize("folder", ["", "stages", "runs"])
def test_status_and_cancel_name_a_link_to_a_missing_disk(lost, tmp_path, capsys, command, folder):
    place = lost(folder)
    assert command.main(["x", "--root", str(tmp_path / "outputs")]) == 2
    assert f"{place} is a link to" in capsys.readouterr().err
    assert not (tmp_path / "disk").exists()


def test_compare_names_a_link_to_a_missing_disk(lost, tmp_path, capsys):
    make_run(tmp_path / "outputs", "x", group="g", asked=(), finished=())
    place = lost("stages")
    assert compare_main(["--group", "g", "--root", str(tmp_path / "outputs")]) == 2
    assert f"{place} is a link to" in capsys.readouterr().err


def test_a_denied_permission_is_not_reported_as_a_missing_disk(monkeypatch):
    def closed(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_symlink", closed)
    message = str(from_os_error(PermissionError(errno.EACCES, "Permission denied", "/x/y"), "here"))
    assert message.startswith("/x/y: Permission denied; ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a folder")
def test_the_cure_for_a_directory_of_another_user_is_another_root(tmp_path):
    os.chown(tmp_path, 65534, -1)
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "new"))
    whose = private.owner(65534)
    message = str(from_os_error(error, "here"))
    assert message.endswith(f"; it belongs to {whose}: take a root= of your own and launch again")
    assert str(unreadable(tmp_path, error)).endswith(f"; ask {whose} to make it readable")


def test_status_works_without_the_data_of_a_run(lost, tmp_path, capsys):
    lost("data")
    make_run(tmp_path / "outputs", "x")
    assert status.main(["x", "--root", str(tmp_path / "outputs")]) == 0
