"""Test `status`, `logs` and `cancel` on runs of this machine; tests/cluster has runs on SLURM."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("nvidia.dali")

from pipeline.records import rundir
from pipeline.records.schemas import Attempt
from tests.launcher import PROJECT, Launcher


def command(name, *arguments, root=None):
    where = ["--root", str(root)] if root else []
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{name}", *arguments, *where],
        cwd=PROJECT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def states(root, run):
    found = json.loads(command("status", run, "--json", root=root).stdout)
    return [stage["state"] for stage in found["runs"][0]["stages"]]


def test_a_finished_run_shows_its_results_and_report(finished):
    done = command("status", "small", root=finished.root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 5
    assert "top-1" in done.stdout
    assert done.stdout.strip().endswith("report.html")


def test_the_log_of_a_stage_is_shown_with_its_attempts(finished):
    done = command("logs", "small", "train", root=finished.root)
    assert "attempt-001.log" in done.stdout
    assert "epoch 4: top-1" in done.stdout


@pytest.mark.parametrize("name", ["status", "logs", "cancel"])
def test_a_run_that_does_not_exist_is_named_with_the_nearest(finished, name):
    done = command(name, "smal", root=finished.root)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: there is no run 'smal' in {finished.root}; did you mean 'small'?\n"
    )


def test_status_without_runs_says_how_to_launch_one(tmp_path):
    done = command("status", root=tmp_path)
    assert done.returncode == 2
    assert "launch one" in done.stderr


@pytest.fixture
def running(launch):
    """Return the launcher and the process of a run whose training is under way."""
    process = subprocess.Popen(
        launch.command("name=long", "train.epochs=1000", "tracking=disabled"),
        cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    progress = launch.root / "runs" / "long" / "train" / rundir.PROGRESS
    until = time.monotonic() + 120
    while not progress.exists() or json.loads(progress.read_text())["done"] < 3:
        assert time.monotonic() < until
        time.sleep(0.1)
    yield launch, process
    process.kill()


def test_a_run_under_way_can_be_shown_followed_and_cancelled(running):
    launch, process = running
    assert states(launch.root, "long") == ["done", "running", *3 * ["not started"]]
    refused = launch("name=long")
    assert refused.returncode == 2
    assert "is already running" in refused.stderr
    follower = subprocess.Popen(
        [sys.executable, "-m", "pipeline.logs", "long", "-f", "--root", str(launch.root)],
        cwd=PROJECT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    done = command("cancel", "long", root=launch.root)
    assert done.returncode == 0, done.stderr
    assert process.wait(60) == 130  # cancelled, not failed
    assert states(launch.root, "long") == ["done", *4 * ["cancelled"]]
    again = command("cancel", "long", root=launch.root)
    assert again.stdout.splitlines()[-1] == "nothing was stopped"
    assert "cancelled → cancelled" not in again.stdout
    shown, _ = follower.communicate(timeout=60)
    assert "first step after" in shown
    assert "stopped before the end" in shown


def test_a_stage_whose_process_was_killed_is_not_called_running(finished, tmp_path):
    shutil.copytree(finished.root, tmp_path / "o", symlinks=True)
    launch = Launcher(tmp_path / "o")
    process = subprocess.Popen(
        launch.command("name=killed", "train.epochs=500", "tracking=disabled", "stage.run=[prep,train]"),
        cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    train = launch.root / "runs" / "killed" / "train"
    until = time.monotonic() + 120
    while not (train / rundir.HISTORY).exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    owner = json.loads((train / Attempt.FILE).read_text())["pid"]
    os.killpg(owner, signal.SIGKILL)
    process.kill()
    until = time.monotonic() + 60
    while states(launch.root, "killed")[1] == "running":
        assert time.monotonic() < until
    assert states(launch.root, "killed") == ["done", "stopped"]
