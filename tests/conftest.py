"""Provide what several tests need: launchers, and one finished run.

`make test` runs the suite in four processes, even on two cores. Two of the processes run the tests
on a real SLURM, each with a cluster of its own, and those tests mostly wait.
"""

import gc
import os
import re
import shutil

import pytest

# If each of several processes uses one thread per core, the threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.launcher import SMALL, Inside, Launcher

STARTS = {"launch", "finished", "copied", "recorder"}  # fixtures that start stages or W&B's client
LEFT_OUT = {"cluster", "zoo", "slow", "gpu"}  # marks that `make check` skips, as it skips `long`
# files that take half of the time of tests/cluster
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
    """Keep `make check` from importing files in which it would skip every test."""
    if config.option.markexpr == "not long" and collection_path.suffix == ".py":
        return bool(WHOLE.search(collection_path.read_text())) or None
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests as `long` that start a stage or have a mark that `make check` skips."""
    for item in items:
        if LEFT_OUT & set(item.keywords) or STARTS & set(item.fixturenames):
            item.add_marker(pytest.mark.long)


def pytest_collection_finish():
    """Freeze the objects that imports created, so that collections and searches skip them."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Unfreeze the objects that imports created, which triton would report as a leak at exit."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribute tests by file, but tests/cluster as two halves, each with one cluster."""
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
    """Return a launcher whose root is a directory of this test."""
    return Launcher(tmp_path / "outputs")


@pytest.fixture
def inside(tmp_path, monkeypatch, capsys):
    """Return a launcher that runs in this process, for launches that end before a stage starts."""
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
    """Return a launcher on a copy of the finished run, which a test may damage."""
    shutil.copytree(finished.root, tmp_path / "outputs", symlinks=True)
    return Launcher(tmp_path / "outputs")
