"""Test the follower of a training: it sends each step once, however often it is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from pipeline.tracking import rows
from tests.launcher import PROJECT, module
from tests.pipeline.tracking.recorder import Recorder
from tests.runs import make_run

pytest.importorskip("wandb")

FOLLOWER = """
import sys
from pipeline.tracking import __main__ as process, session
session.PAUSE, session.PATIENCE = 0.05, 3.0
sys.exit(process.main(sys.argv[1:]))
"""


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not become true in time"
        time.sleep(0.02)


def follower(recorder, run, parent):
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, run, "--follow", str(parent)],
        cwd=PROJECT, env=recorder.environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def steps(recorder):
    """Return the steps of the only run that the server received; [] if it received none."""
    assert len(recorder.runs) <= 1
    return [step for run in recorder.runs.values() for step in run.steps]


def core_of(process):
    """Return the process ids of wandb's core below a follower."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def terminate(process):
    """Send SIGTERM to a follower and to wandb's core, which may have ended by itself."""
    for pid in [process.pid, *core_of(process)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


@pytest.fixture
def training(run):
    return begin(run)


def begin(run):
    """Empty the history of a run, and return a function that appends its rows up to a given step."""
    history, result = run / "train" / "history.jsonl", run / "train" / "result.json"
    kept, written = result.read_text(), [0]
    history.write_text("")
    result.unlink()

    def write(until):
        with history.open("a") as file:
            for step in range(written[0] + 1, until + 1):
                row = {"kind": "step", "step": step, "epoch": 1, "samples": 64 * step}
                file.write(json.dumps(row | {"loss": 1 / step}) + "\n")
        written[0] = until

    def finish():
        with history.open("a") as file:
            row = {"kind": "epoch", "step": written[0], "epoch": 1, "samples": 0, "top1": 77.0}
            file.write(json.dumps(row) + "\n")
        result.write_text(kept)

    write.finish = finish
    return write


def test_a_follower_killed_repeatedly_sends_one_run_with_each_step_once(recorder, run, training):
    chance, arrived = random.Random(2), 0
    for attempt in range(10):
        parent = subprocess.Popen(["sleep", "300"])
        process = follower(recorder, run, parent.pid)
        training((attempt + 1) * 20)
        if attempt % 3:  # otherwise the follower is killed before it has sent a row
            wait_for(lambda: len(steps(recorder)) > arrived)  # noqa: B023
        time.sleep(chance.random() * 0.3)
        how = attempt % 4
        if how == 0:
            os.killpg(process.pid, signal.SIGKILL)
        elif how == 1:  # all processes, as SLURM does
            terminate(process)
        elif how == 2:
            os.kill(process.pid, signal.SIGKILL)
        parent.kill()
        parent.wait()
        process.communicate(timeout=60)
        seen = steps(recorder)
        assert seen == list(range(1, len(seen) + 1))
        arrived = len(seen)
    parent = subprocess.Popen(["sleep", "300"])
    process = follower(recorder, run, parent.pid)
    training(230)
    training.finish()
    _, errors = process.communicate(timeout=60)
    parent.kill()
    assert process.returncode == 0, errors
    (arrived,) = recorder.runs.values()
    assert arrived.steps == list(range(1, 231))
    assert arrived.history[-1]["epoch/top1"] == 77.0
    assert [row["train/loss"] for row in arrived.history] == [1 / n for n in range(1, 231)]
    assert rows.results(run).items() <= arrived.summary.items()
    assert arrived.state == "finished"


def test_a_follower_restarts_wandb_after_a_signal_to_the_whole_job(recorder, run, training):
    parent = subprocess.Popen(["sleep", "300"])
    process = follower(recorder, run, parent.pid)
    training(10)
    wait_for(lambda: len(steps(recorder)) >= 9)
    terminate(process)
    training(20)
    wait_for(lambda: len(steps(recorder)) >= 19)
    assert process.poll() is None
    parent.terminate()  # stands for the end of the training after a save
    parent.wait()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    (arrived,) = recorder.runs.values()
    assert arrived.state == "preempted"
    assert arrived.steps == list(range(1, 20))  # the last step waits for the numbers of its epoch


def test_the_death_of_wandb_is_noticed_between_rows(recorder, run, training):
    """Rows that wandb's core had queued are lost with it, and the next row may come an epoch later."""
    parent = subprocess.Popen(["sleep", "300"])
    process = follower(recorder, run, parent.pid)
    training(10)
    wait_for(lambda: len(steps(recorder)) >= 9)
    (core,) = core_of(process)
    os.kill(core, signal.SIGKILL)
    wait_for(lambda: set(core_of(process)) - {core})
    training(20)
    training.finish()
    process.communicate(timeout=60)
    parent.kill()
    (arrived,) = recorder.runs.values()
    assert arrived.steps == list(range(1, 21))


@pytest.mark.long
def test_a_server_that_fails_loses_no_rows(tmp_path):
    runs = [make_run(tmp_path / name, "one") for name in ("hangs", "refuses")]
    with ThreadPoolExecutor() as both:  # wandb's client repeats requests for 20 s
        list(both.map(survive, ("hang", 500), runs))


def survive(trouble, run):
    training = begin(run)
    with Recorder() as recorder:
        parent = subprocess.Popen(["sleep", "300"])
        process = follower(recorder, run, parent.pid)
        training(10)
        wait_for(lambda: len(steps(recorder)) >= 9)
        recorder.trouble = trouble
        training(20)
        training.finish()
        process.communicate(timeout=60)  # the follower ends although the server has not recovered
        parent.kill()
        recorder.trouble = None
        done = module("tracking", run, "--mode", "online", environment=recorder.environment())
        assert done.returncode == 0, done.stderr
        (arrived,) = recorder.runs.values()
        assert arrived.steps == list(range(1, 21))
        assert arrived.state == "finished"


def test_a_follower_without_a_server_ends_at_once(recorder, run, training):
    parent = subprocess.Popen(["sleep", "300"])
    recorder.__exit__()
    process = follower(recorder, run, parent.pid)
    process.communicate(timeout=60)
    parent.kill()
    assert process.returncode == 0
