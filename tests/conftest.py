"""What several tests need: the command line with a root of its own, and one finished run."""

import shutil

import pytest

from tests.launcher import SMALL, Inside, Launcher


@pytest.fixture
def launch(tmp_path):
    """Return a launcher that writes below a root of this test."""
    return Launcher(tmp_path / "outputs")


@pytest.fixture
def inside(tmp_path, monkeypatch, capsys):
    """Return a launcher within this process: for what ends before a stage begins."""
    return Inside(tmp_path / "outputs", monkeypatch, capsys)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return the launcher of a run named `small` that went through all stages with two processes."""
    pytest.importorskip("nvidia.dali")
    launcher = Launcher(tmp_path_factory.mktemp("finished") / "outputs")
    done = launcher("name=small", "cluster.processes_per_node=2", *SMALL, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    launcher.output = done.stdout
    return launcher


@pytest.fixture
def copied(finished, tmp_path):
    """Return a launcher on a copy of the finished run, free to damage."""
    shutil.copytree(finished.root, tmp_path / "outputs", symlinks=True)
    return Launcher(tmp_path / "outputs")
