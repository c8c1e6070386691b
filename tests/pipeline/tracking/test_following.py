"""A training that is shown while it goes on, however often it and its follower are killed."""

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
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


def follower(recorder, run, parent):
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, run, "--follow", str(parent)],
        cwd=PROJECT, env=recorder.environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def steps(recorder):
    """Return the steps of the only run that arrived, if it did."""
    assert len(recorder.runs) <= 1
    return [step for run in recorder.runs.values() for step in run.steps]


def core_of(process):
    """Return wandb's own process below a follower."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def terminate(process):
    """Send SIGTERM to a follower and to wandb's process, which may end by itself meanwhile."""
    for pid in [process.pid, *core_of(process)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


@pytest.fixture
def training(run):
    return begin(run)


def begin(run):
    """Return a training that has begun: called with n, it appends its history up to step n."""
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


def test_killed_again_and_again_it_remains_one_run_with_each_step_once(recorder, run, training):
    chance, told = random.Random(2), 0
    for attempt in range(10):
        parent = subprocess.Popen(["sleep", "300"])
        process = follower(recorder, run, parent.pid)
        training((attempt + 1) * 20)
        if attempt % 3:  # else it is killed before it has said anything
            wait_for(lambda: len(steps(recorder)) > told)  # noqa: B023
        time.sleep(chance.random() * 0.3)
        how = attempt % 4
        if how == 0:
            os.killpg(process.pid, signal.SIGKILL)
        elif how == 1:  # as SLURM would: everybody
            terminate(process)
        elif how == 2:
            os.kill(process.pid, signal.SIGKILL)
        parent.kill()
        parent.wait()
        process.communicate(timeout=60)
        seen = steps(recorder)
        assert seen == list(range(1, len(seen) + 1))
        told = len(seen)
    parent = subprocess.Popen(["sleep", "300"])
    process = follower(recorder, run, parent.pid)
    training(230)
    training.finish()
    _, said = process.communicate(timeout=60)
    parent.kill()
    assert process.returncode == 0, said
    (arrived,) = recorder.runs.values()
    assert arrived.steps == list(range(1, 231))
    assert arrived.history[-1]["epoch/top1"] == 77.0
    assert [row["train/loss"] for row in arrived.history] == [1 / n for n in range(1, 231)]
    assert rows.results(run).items() <= arrived.summary.items()
    assert arrived.state == "finished"


def test_a_signal_for_the_whole_job_kills_wandb_and_the_follower_begins_anew(
    recorder, run, training
):
    parent = subprocess.Popen(["sleep", "300"])
    process = follower(recorder, run, parent.pid)
    training(10)
    wait_for(lambda: len(steps(recorder)) >= 9)
    terminate(process)
    training(20)
    wait_for(lambda: len(steps(recorder)) >= 19)
    assert process.poll() is None
    parent.terminate()  # the training has saved and left
    parent.wait()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    (arrived,) = recorder.runs.values()
    assert arrived.state == "preempted"
    assert arrived.steps == list(range(1, 20))  # of the last the epoch's numbers may follow


def test_that_wandb_died_is_noticed_while_there_is_nothing_to_send(recorder, run, training):
    """It may have taken rows and died with them: the next row could be an epoch away."""
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
def test_a_server_in_trouble_loses_nothing(tmp_path):
    runs = [make_run(tmp_path / name, "one") for name in ("hangs", "refuses")]
    with ThreadPoolExecutor() as both:  # the client is patient for 20 s
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
        process.communicate(timeout=60)  # it gives up, whatever the server does
        parent.kill()
        recorder.trouble = None
        done = module("tracking", run, "--mode", "online", environment=recorder.environment())
        assert done.returncode == 0, done.stderr
        (arrived,) = recorder.runs.values()
        assert arrived.steps == list(range(1, 21))
        assert arrived.state == "finished"


def test_a_follower_without_a_server_leaves_at_once(recorder, run, training):
    parent = subprocess.Popen(["sleep", "300"])
    recorder.__exit__()
    process = follower(recorder, run, parent.pid)
    process.communicate(timeout=60)
    parent.kill()
    assert process.returncode == 0
