"""Test status, cancel and launch while jobs are in the queue."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from pipeline.config.base import STAGE_NAMES
from slurm import scheduler
from slurm.queue import submitted
from tests.cluster.real import needs_slurm, wait_for
from tests.launcher import PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]
HELD = ("cluster=slurm", "cluster.cpus_per_process=1", "+cluster.sbatch.hold=true", "stage=prep")
NOWHERE = {"SLURM_CONF": "/nowhere/slurm.conf"}


@pytest.fixture
def command(cluster, tmp_path):
    """Return a function that runs a command of the pipeline on a root of this test."""

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
        (found,) = json.loads(done.stdout)["runs"]
        return [stage["state"] for stage in found["stages"]]

    return ask


def mine():
    return [entry for entry in scheduler.user_jobs().values() if entry.active]


def test_two_launches_of_one_name_at_the_same_time_make_one_run(command, tmp_path):
    held = [*HELD[:-1], "stage=all"]
    for name, others in (("alike", ["seed=1"] * 2), ("unlike", ["seed=2", "seed=3"])):
        with ThreadPoolExecutor(2) as pool:
            done = list(
                pool.map(lambda seed, n=name: command("launch", f"name={n}", *held, seed), others)
            )
        refused = [each for each in done if each.returncode]
        assert len(refused) == (name == "unlike")
        for each in refused:
            last = each.stderr.splitlines()[-1]
            assert each.returncode == 2 and "with other settings" in last, each.stderr
            assert "rm -r" not in last, "the cure removes a run whose jobs are queued"
        directories = {(tmp_path / "runs" / name / stage).resolve() for stage in STAGE_NAMES}
        assert all(submitted(directory) for directory in directories)
        stages = [entry.name for entry in mine() if entry.name.startswith(f"{name}.")]
        shared = name == "unlike"  # both runs share prep, which reads no seed
        assert sorted(stages) == sorted(f"{name}.{s}" for s in STAGE_NAMES[shared:])
    assert command("cancel", "alike", "unlike").returncode == 0
    wait_for(lambda: not mine())


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


def test_a_job_is_unknown_and_not_cancelled_if_slurm_does_not_answer(command, states):
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
