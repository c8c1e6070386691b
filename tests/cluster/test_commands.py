"""status, cancel and launch on jobs that wait: what is shared, what is unknown, what stays as it was."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from slurm import scheduler
from tests.cluster.real import needs_slurm, wait_for
from tests.launcher import PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]
HELD = ("cluster=slurm", "cluster.cpus_per_process=1", "+cluster.sbatch.hold=true", "stage=prep")
NOWHERE = {"SLURM_CONF": "/nowhere/slurm.conf"}


@pytest.fixture
def command(cluster, tmp_path):
    """Return a way to give commands on runs of a root of their own."""

    def run(name, *arguments, environment=None):
        root = f"root={tmp_path}" if name == "launch" else f"--root={tmp_path}"
        return subprocess.run(
            [sys.executable, "-m", f"pipeline.{name}", *arguments, root], cwd=PROJECT,
            env=os.environ | (environment or {}), capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return run


@pytest.fixture
def states(command):
    def ask(run, environment=None):
        done = command("status", run, "--json", environment=environment)
        assert done.returncode == 0, done.stderr
        (told,) = json.loads(done.stdout)["runs"]
        return [stage["state"] for stage in told["stages"]]

    return ask


def mine():
    return [entry for entry in scheduler.mine().values() if entry.active]


def test_runs_that_share_a_stage_are_cancelled_one_after_the_other(command, states):
    assert command("launch", "name=one", *HELD).returncode == 0
    (job,) = mine()
    done = command("launch", "name=two", *HELD)
    assert done.returncode == 0, done.stderr
    assert "1 in the queue before" in done.stdout
    assert [entry.id for entry in mine()] == [job.id]
    assert states("one") == states("two") == ["held"]

    first = command("cancel", "one")
    assert first.returncode == 0
    assert "two needs it, too" in first.stdout and "nothing was stopped" in first.stdout
    assert mine()
    assert command("cancel", "two").returncode == 0
    wait_for(lambda: not mine())
    assert states("two") == ["cancelled"]


def test_what_slurm_does_not_tell_is_unknown_and_not_called_cancelled(command, states):
    assert command("launch", "name=far", *HELD).returncode == 0
    assert states("far", NOWHERE) == ["unknown"]
    done = command("cancel", "far", environment=NOWHERE)
    assert done.returncode == 1
    assert "/nowhere/slurm.conf" in done.stderr and "cancel again" in done.stderr
    assert mine()
    assert command("cancel", "far").returncode == 0
    wait_for(lambda: not mine())


def test_a_queued_job_keeps_its_settings_and_its_place(command, tmp_path):
    assert command("launch", "name=kept", *HELD).returncode == 0
    where = tmp_path / "runs" / "kept" / "prep" / "where.yaml"
    before = where.read_text()
    other = command("launch", "name=kept", *HELD, "cluster.hang_timeout=77")
    assert other.returncode == 0, other.stderr
    assert where.read_text() == before

    local = command("launch", "name=kept", "cluster=local", "stage=prep")
    assert local.returncode == 2
    assert "in SLURM's queue" in local.stderr and "pipeline.cancel kept" in local.stderr
    assert command("cancel", "kept").returncode == 0
    wait_for(lambda: not mine())
    local = command("launch", "name=kept", "cluster=local", "stage=prep")
    assert local.returncode == 0, local.stderr
    assert yaml.safe_load(where.read_text())["cluster"]["name"] == "local"
    assert not (where.parent / "CANCELLED").exists()
