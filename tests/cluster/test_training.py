"""Test that a real training on two nodes, disturbed by its cluster, equals an undisturbed one."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks import recovery
from slurm import scheduler
from tests.cluster.real import needs_slurm, wait_for
from tests.launcher import PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]


# test_recovery.py has the other disturbances, and benchmarks.recovery has all of them
HARDEST = {"preempted, 2 s of grace", "kill -9 of the supervisor"}


def run(command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{command}", *arguments], cwd=PROJECT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def active():
    return [entry for entry in scheduler.user_jobs().values() if entry.active]


@pytest.mark.timeout(600)
def test_a_disturbed_training_equals_an_undisturbed_one(cluster, tmp_path):
    cases = [case for case in recovery.CASES if case.name in HARDEST]
    report = recovery.compare(cluster, tmp_path, cases, ["train.epochs=6"])
    assert not report["differences"]
    rows = {row["case"]: row for row in report["cases"]}
    assert rows.keys() == HARDEST
    signalled = rows["preempted, 2 s of grace"]
    assert signalled["stopped"]
    assert signalled["repeated"] == 0
    root = f"--root={tmp_path / 'night'}"
    (found,) = json.loads(run("status", "run", root, "--json").stdout)["runs"]
    assert found["state"] == "done"
    assert found["lost_seconds"] > 0
    assert f"attempt-{report['attempts']:03d}" in run("logs", "run", "train", root).stdout


def test_a_cancelled_run_stays_cancelled_until_it_is_launched_again(cluster, tmp_path):
    settings = ("cluster=slurm", "cluster.cpus_per_process=2", "train.epochs=400", "seed=4")
    first = run("launch", f"root={tmp_path}", "name=day", *settings)
    assert first.returncode == 0, first.stderr
    day = recovery.Night(cluster, tmp_path / "runs" / "day")
    wait_for(lambda: day.events("first_step"), 180)
    assert "for train of day" in run("status", "day", f"--root={tmp_path}").stdout
    done = run("cancel", "day", f"--root={tmp_path}")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not active())
    time.sleep(7)  # longer than a requeue takes
    assert not active()
    (found,) = json.loads(run("status", "day", f"--root={tmp_path}", "--json").stdout)["runs"]
    assert [stage["state"] for stage in found["stages"]] == ["done"] + 4 * ["cancelled"]
    saved = day.events("saved")[-1]["step"]
    again = run("launch", f"root={tmp_path}", "name=day")
    assert again.returncode == 0, again.stderr
    wait_for(lambda: day.events("resumed"))
    assert day.events("resumed")[0]["step"] == saved
    run("cancel", "day", f"--root={tmp_path}")
    wait_for(lambda: not active())
