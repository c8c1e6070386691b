"""What several tests need: the command line with a root of its own, and one finished run.

`make test` runs the suite in four processes, for two cores: the tests on a real SLURM, in two of
them with a cluster each, mostly wait.
"""

import gc
import os
import re
import shutil

import pytest

# Two processes that each compute in as many threads as there are cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.launcher import SMALL, Inside, Launcher

STARTS = {"launch", "finished", "copied", "recorder"}  # fixtures that start stages or W&B's client
LEFT_OUT = {"cluster", "zoo", "slow", "gpu"}  # by `make check`, like `long`
# of the tests on SLURM, by the time they take
ONE_HALF = (
    "_recovery.py",
    "_nodes.py",
    "_failover.py",
    "_suspension.py",
    "_shells.py",
    "_commands.py",
)
WHOLE = re.compile(
    rf"^pytestmark = \[?\s*pytest\.mark\.(long|{'|'.join(LEFT_OUT)})\b", re.MULTILINE
)


def pytest_ignore_collect(collection_path, config):
    """Spare `make check` the imports of files that it leaves out whole."""
    if config.option.markexpr == "not long" and collection_path.suffix == ".py":
        return bool(WHOLE.search(collection_path.read_text())) or None
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that `make check` leaves out."""
    for item in items:
        if LEFT_OUT & set(item.keywords) or STARTS & set(item.fixturenames):
            item.add_marker(pytest.mark.long)


def pytest_collection_finish():
    """Leave what the imports brought out of every later search for garbage and for wrappers."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Give it back, or triton calls it a leak at exit."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give two processes half of the tests on SLURM each, which share a cluster; else files."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            if not file.startswith("tests/cluster/"):
                return file
            return f"cluster {file.endswith(ONE_HALF)}"

    return Scheduling(config, log)


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
