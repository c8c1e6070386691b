"""Test that a cluster's directory is not read if another user may have written in it."""

import os

import pytest

from slurm.dev_cluster.__main__ import main
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.directory import claim
from tests.cluster.real import needs_slurm

pytestmark = pytest.mark.cluster


def planted(directory):
    """Make a directory that looks like a cluster's, but cannot be read without an error."""
    directory.mkdir(mode=0o700)
    (directory / "dev_cluster.json").mkdir()
    (directory / "slurm.conf").write_text("PluginDir=/nowhere\n")


def strangers(tmp_path, directory):
    planted(directory)
    os.chown(directory, 65534, 65534)


def exchangeable(tmp_path, directory):
    directory.parent.mkdir()
    planted(directory)
    directory.parent.chmod(0o777)


def linked(tmp_path, directory):
    planted(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")


def open_to(mode):
    def make(tmp_path, directory):
        planted(directory)
        directory.chmod(mode)

    return make


@pytest.mark.parametrize("subcommand", ["up", "down", "status"])
@pytest.mark.parametrize(
    "plant, place, message",
    [
        (strangers, "c", "belongs to user"),
        (open_to(0o777), "c", "open to other users (mode 0777)"),
        (open_to(0o720), "c", "open to other users (mode 0720)"),
        (open_to(0o755), "c", "open to other users (mode 0755)"),
        (linked, "c", "is a symbolic link"),
        (exchangeable, "open/c", "can be replaced by everybody in"),
    ],
)
@needs_slurm
def test_a_directory_that_another_user_may_have_written_is_not_read(
    tmp_path_factory, capsys, subcommand, plant, place, message
):
    tmp_path = tmp_path_factory.mktemp("d")  # SLURM needs short paths
    plant(tmp_path, tmp_path / place)
    assert main([subcommand, f"--dir={tmp_path / place}"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path / place} ") and message in printed.err
    assert printed.err.count("\n") == 1 and not printed.out
    assert (tmp_path / place / "slurm.conf").exists()


def test_an_empty_directory_is_closed_to_others_before_it_is_used(tmp_path):
    (tmp_path / "c").mkdir(mode=0o755)
    claim(Cluster(tmp_path / "c"))
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
