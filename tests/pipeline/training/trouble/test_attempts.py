"""Test attempts at a training that are stopped, superseded or killed, or that hang."""

import os
import shutil
import signal

import pytest

pytest.importorskip("nvidia.dali")


from benchmarks.chaos import copy_question, differences
from benchmarks.killing import children, rank
from pipeline.display.errors import Superseded
from pipeline.records import attempt, rundir
from pipeline.records.schemas import Attempt
from tests.launcher import in_processes, wait_for
from tests.pipeline.training.trouble.stages import (
    below,
    change,
    events,
    start,
    steps,
    stop_after_first_epoch,
    to_end,
)


def test_sigusr2_stops_a_training_without_losing_a_step(stage, undisturbed):
    change(stage, rundir.WHERE, "checkpoint", interval="1000 steps")
    process = start(stage)
    wait_for(lambda: len(steps(stage)) > 5, process)
    process.send_signal(signal.SIGUSR2)  # test_no_work_lost.py sends SIGINT, test_chaos.py SIGTERM
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert events(stage, "saved")[-1]["step"] == steps(stage)[-1]
    assert to_end(stage)[0] == 0
    (resumed,) = events(stage, "resumed")
    assert resumed["step"] == max(
        row["step"] for row in events(stage, "saved") if row["attempt"] == 1
    )
    assert differences(undisturbed, stage) == []


def test_a_superseded_attempt_cannot_write(stage, undisturbed):
    """Two attempts are alive, as after a node lost contact: the first was frozen and lost its lock."""
    process = start(stage)
    wait_for(lambda: len(steps(stage)) > 25, process)
    frozen = below(process.pid)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    (stage / rundir.LOCK).unlink()
    successor = start(stage)
    wait_for(lambda: attempt.last(stage).attempt == 2, successor)
    wait_for(lambda: events(stage, "first_step")[-1]["attempt"] == 2, successor)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "attempt 1 of" in output and "is superseded by attempt 2" in output
    assert successor.wait(120) == 0
    successor.communicate()
    assert differences(undisturbed, stage) == []
    assert rundir.read_json(stage / rundir.RESULT)["attempts"] == 2
    assert all(row["attempt"] == 2 for row in events(stage, "finished"))


def test_an_attempt_superseded_while_it_starts_cannot_begin(stage, undisturbed):
    process = start(stage)
    wait_for(lambda: len(below(process.pid)) == 3, process)
    frozen = below(process.pid)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    (stage / rundir.LOCK).unlink()
    successor = start(stage)
    wait_for(lambda: len(steps(stage)) > 25, successor)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=120)  # exit code 0 if attempt 2 has finished
    assert "is superseded by attempt 2" in output
    assert successor.wait(120) == 0
    successor.communicate()
    assert differences(undisturbed, stage) == []
    assert {row["attempt"] for row in events(stage, "saved")} == {2}


def test_only_the_newest_attempt_may_write(tmp_path):
    (tmp_path / rundir.STAGE).touch()
    number = attempt.claim(tmp_path)
    attempt.check_owner(tmp_path, number)
    rundir.write_json(tmp_path / Attempt.FILE, {"attempt": number + 1})
    with pytest.raises(Superseded):
        attempt.check_owner(tmp_path, number)


def test_a_resume_with_other_processes_starts_at_the_end_of_an_epoch(stage):
    stop_after_first_epoch(stage)
    change(stage, rundir.WHERE, "cluster", processes_per_node=1)
    code, done = to_end(stage)
    assert code == 0, done
    assert "is of 2 processes in the middle of an epoch" in done
    (resumed,) = events(stage, "resumed")
    assert resumed["step"] == 22
    assert steps(stage) == list(range(1, 89))
    rows = [row for row in rundir.read_lines(stage / rundir.HISTORY) if row["kind"] == "step"]
    assert all(row["samples"] == 64 * row["step"] for row in rows)


def test_a_process_that_is_killed_ends_the_stage_with_the_reason(stage):
    """Variables of another job, left in the shell, do not make the stage wait for other nodes."""
    left = {
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "192.0.2.1",
        "RANK": "3",
        "SUPERVISED_JOB": "7.0",
    }
    process = start(stage, left)
    wait_for(lambda: events(stage, "started"), process)
    victim = next(pid for pid in children(process.pid) if rank(pid) == 1)
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith(
        "error: rank 1 was killed by SIGKILL, by somebody, or by the kernel"
    )
    assert attempt.last(stage).job is None
    assert attempt.ending(stage, 1).kind == "killed"


def test_a_run_directory_that_vanishes_is_named_and_not_made_again(stage):
    process = start(stage)
    wait_for(lambda: len(steps(stage)) > 5, process)
    stage.rename(stage.with_name("elsewhere"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.count(f"{stage} has vanished") == 1
    assert not stage.exists()


def test_an_image_that_was_damaged_after_prep_is_named(stage):
    link = next(stage.parent.glob("prep-*"))
    prep = link.resolve()
    link.unlink()
    shutil.copytree(prep, link, ignore=shutil.ignore_patterns("data"))
    shutil.copytree(prep / "data", link / "data")
    shard = link / "data" / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    at = content.index(b"IDAT")
    content[at : at + 60] = bytes(60)
    shard.write_bytes(content)
    code, done = to_end(stage)
    assert code == 2
    assert "train-00000.tar was changed since it was written; not readable in it: " in done
    assert ".png" in done and "rm -r" in done


@pytest.mark.parametrize("name", [rundir.STAGE, rundir.WHERE, Attempt.FILE])
@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_an_incomplete_file_is_refused_in_one_line(stage, name, content):
    (stage / name).write_text(content)
    code, done = to_end(stage)
    assert code == 2
    assert done.count("\n") == 1
    assert f"{name} is damaged" in done


HANGING = """
import sys, time
from pipeline.contract import interrupt
from pipeline.contract.world import world

def stuck_in_a_read():
    time.sleep(1000)

with world(hang_timeout=3) as processes:
    processes.any(False)
    if processes.rank:
        stuck_in_a_read()
    processes.any(False)
"""


@pytest.mark.long
def test_a_process_that_hangs_ends_and_every_process_shows_its_stack(tmp_path):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    process = in_processes(script)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "made no step for 3 s; every process shows where it is" in errors
    waits, hangs = errors.split("rank 0:\n")[1].split("rank 1:\n")  # the stacks are not interleaved
    for stacks, where in (waits, "in any\n"), (hangs, "in stuck_in_a_read\n"):
        assert stacks.count("Current thread") == 1 and where in stacks


def test_half_precision_with_loss_scaling_resumes_exactly(stage, tmp_path):
    change(stage, rundir.STAGE, "train", precision="float16", ema=0.9, epochs=2)
    change(stage, rundir.STAGE, "method", adjust_interval=1)
    change(stage, rundir.STAGE, "model", widths=[[8, 8], [16, 16]])  # float16 is slow on a CPU
    other = copy_question(stage, tmp_path / "other")
    assert to_end(other)[0] == 0
    stop_after_first_epoch(stage)
    assert to_end(stage)[0] == 0
    assert differences(other, stage) == []
