"""What goes wrong while training: stale writers, other processes, bad numbers, damaged data, hanging."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
import yaml

pytest.importorskip("nvidia.dali")

import torch
from safetensors.torch import load_file

from benchmarks.chaos import copy_question, differences
from benchmarks.killing import children, rank
from pipeline import run
from pipeline.contract.table import STAGES
from pipeline.errors import Superseded, UserError
from pipeline.records import attempt, rundir, store
from pipeline.records.schemas import Question
from pipeline.training import resume
from tests.launcher import PROJECT, in_processes, wait_for


@pytest.fixture
def stage(finished, tmp_path):
    """Return a fresh directory of the training that `finished` has done."""
    done = (finished.root / "runs" / "small" / "train").resolve()
    return copy_question(done, tmp_path / "outputs")


@pytest.fixture(autouse=True)
def no_attempt(monkeypatch):
    """Take back what a test claims in this process."""
    monkeypatch.setenv(attempt.NUMBER, "1")


@pytest.fixture
def undisturbed(finished):
    return (finished.root / "runs" / "small" / "train").resolve()


def change(stage, name, section, **values):
    path = stage / name
    content = yaml.safe_load(path.read_text())
    (content["config"] if name == rundir.STAGE else content)[section].update(values)
    path.write_text(yaml.safe_dump(content))


def start(stage, environment=None):
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.run", str(stage)],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip


def to_end(stage):
    process = start(stage)
    said, _ = process.communicate(timeout=180)
    return process.returncode, said


def events(stage, name):
    return [row for row in rundir.read_lines(stage / rundir.EVENTS) if row["event"] == name]


def steps(stage):
    rows = rundir.read_lines(stage / rundir.HISTORY)
    return [row["step"] for row in rows if row["kind"] == "step"]


def below(pid):
    return [pid, *(deeper for child in children(pid) for deeper in below(child))]


def stop_after_first_epoch(stage):
    """Stop a training in the middle of its second epoch."""
    change(stage, rundir.WHERE, "checkpoint", interval="3 steps")  # rows are written as often
    process = start(stage)
    wait_for(lambda: len(steps(stage)) > 25, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert 22 < events(stage, "saved")[-1]["step"] < 44


def test_the_signal_of_a_cluster_loses_no_step_and_says_stopped(stage, undisturbed):
    change(stage, rundir.WHERE, "checkpoint", interval="1000 steps")
    process = start(stage)
    wait_for(lambda: len(steps(stage)) > 5, process)
    process.send_signal(signal.SIGUSR2)  # INT is in test_harm.py, TERM in test_chaos.py
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert events(stage, "saved")[-1]["step"] == steps(stage)[-1]
    assert to_end(stage)[0] == 0
    (resumed,) = events(stage, "resumed")
    assert resumed["step"] == max(
        row["step"] for row in events(stage, "saved") if row["attempt"] == 1
    )
    assert differences(undisturbed, stage) == []


def test_an_attempt_that_was_given_up_cannot_write_any_more(stage, undisturbed):
    """Two attempts live: the first was frozen, and its lock is gone, as if its node lost contact."""
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
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "attempt 1 of" in said and "is superseded by attempt 2" in said
    assert successor.wait(120) == 0
    successor.communicate()
    assert differences(undisturbed, stage) == []
    assert rundir.read_json(stage / rundir.RESULT)["attempts"] == 2
    assert all(row["attempt"] == 2 for row in events(stage, "finished"))


def test_an_attempt_that_is_given_up_while_it_starts_cannot_begin(stage, undisturbed):
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
    said, _ = process.communicate(timeout=120)  # its code is 0 if the other is done by then
    assert "is superseded by attempt 2" in said
    assert successor.wait(120) == 0
    successor.communicate()
    assert differences(undisturbed, stage) == []
    assert {row["attempt"] for row in events(stage, "saved")} == {2}


def test_only_the_newest_attempt_may_write(tmp_path):
    (tmp_path / rundir.STAGE).touch()
    number = attempt.claim(tmp_path)
    attempt.check(tmp_path, number)
    rundir.write_json(tmp_path / rundir.ATTEMPT, {"attempt": number + 1})
    with pytest.raises(Superseded):
        attempt.check(tmp_path, number)


def test_another_number_of_processes_goes_back_to_the_end_of_an_epoch(stage):
    stop_after_first_epoch(stage)
    change(stage, rundir.WHERE, "cluster", processes_per_node=1)
    code, said = to_end(stage)
    assert code == 0, said
    assert "is of 2 processes in the middle of an epoch" in said
    (resumed,) = events(stage, "resumed")
    assert resumed["step"] == 22
    assert steps(stage) == list(range(1, 89))
    rows = [row for row in rundir.read_lines(stage / rundir.HISTORY) if row["kind"] == "step"]
    assert all(row["samples"] == 64 * row["step"] for row in rows)


def test_a_process_that_is_killed_ends_the_stage_with_the_reason(stage):
    """And nothing that is left in the shell, or said of another job, makes it wait for others."""
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
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith(
        "error: rank 1 was killed by SIGKILL, as the kernel does"
    )
    assert attempt.last(stage).job is None
    assert attempt.ending(stage, 1).kind == "killed"


class Alone:
    """The only process."""

    rank, world_size = 0, 1

    def from_main(self, find):
        return find()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.lr", 0.05, "train.lr 0.05 → 0.1"),
        ("train.batch_size", 32, "train.batch_size 32 → 64"),
        ("DALI", "1.0", "DALI 1.0 → "),
        ("prepared data", "abc", "prepared data abc → "),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(stage, undisturbed, key, value, said):
    shutil.copytree(undisturbed / "checkpoints", stage / "checkpoints")
    shutil.copy(undisturbed / rundir.HISTORY, stage)
    shutil.copy(undisturbed / rundir.GROWTH, stage)
    rundir.write_json(stage / rundir.ATTEMPT, {"attempt": 1})
    context = run._context(STAGES["train"], stage, store.read(Question, stage))
    own = resume.identity(context)
    assert resume.find(context, Alone(), own).stem.startswith("step-00000088")
    for path in (stage / "checkpoints").glob("step-*.json"):
        seal = rundir.read_json(path)
        seal["identity"][key] = value
        rundir.write_json(path, seal)
    with pytest.raises(UserError, match="was written for something else") as refused:
        resume.find(context, Alone(), own)
    assert said in str(refused.value)


def test_a_checkpoint_that_knows_more_than_the_history_is_passed_over(stage, undisturbed):
    shutil.copytree(undisturbed / "checkpoints", stage / "checkpoints")
    rows = (undisturbed / rundir.HISTORY).read_text().splitlines(keepends=True)
    (stage / rundir.HISTORY).write_text("".join(rows[:70]))
    shutil.copy(undisturbed / rundir.GROWTH, stage)
    rundir.write_json(stage / rundir.ATTEMPT, {"attempt": 1})
    context = run._context(STAGES["train"], stage, store.read(Question, stage))
    found = resume.find(context, Alone(), resume.identity(context))
    assert found.stem.startswith("step-00000066")
    (passed_over,) = events(stage, "passed_over")
    assert "which has 70" in passed_over["reason"]


def test_checkpoints_without_their_history_are_kept_and_named(stage, undisturbed):
    shutil.copytree(undisturbed / "checkpoints", stage / "checkpoints")
    files = sorted(path.name for path in (stage / "checkpoints").iterdir())
    rundir.write_json(stage / rundir.ATTEMPT, {"attempt": 1})
    context = run._context(STAGES["train"], stage, store.read(Question, stage))
    with pytest.raises(UserError, match=r"rows of history.jsonl, which has 0"):
        resume.find(context, Alone(), resume.identity(context))
    assert sorted(path.name for path in (stage / "checkpoints").iterdir()) == files


def test_no_intact_checkpoint_is_an_error_not_a_new_beginning(stage, undisturbed):
    shutil.copytree(undisturbed / "checkpoints", stage / "checkpoints")
    shutil.copy(undisturbed / rundir.HISTORY, stage)
    for path in (stage / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    code, said = to_end(stage)
    assert code == 2
    assert "no checkpoint can be used (step-00000088" in said


def test_a_run_directory_that_vanishes_is_named_and_not_made_again(stage):
    process = start(stage)
    wait_for(lambda: len(steps(stage)) > 5, process)
    stage.rename(stage.with_name("elsewhere"))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"{stage} has vanished" in said
    assert not stage.exists()


def test_an_image_that_cannot_be_decoded_any_more_is_named(stage):
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
    code, said = to_end(stage)
    assert code == 2
    assert "train-00000.tar was changed since it was written; not readable in it: " in said
    assert ".png" in said and "rm -r" in said


POISON = """
import sys
from pathlib import Path
from pipeline import worker
from pipeline.data.loaders.base import Loader

batches = Loader.__iter__

def poisoned(self):
    for batch in batches(self):
        if self.part.split == "train" and (batch.numbers == int(sys.argv[2])).any():
            batch.images.fill_(float("nan"))
        yield batch

Loader.__iter__ = poisoned
sys.exit(worker.main(Path(sys.argv[1])))
"""


@pytest.fixture
def poisoned(stage, tmp_path):
    """Return the stage and a way to run it with one image that makes its batch nan."""
    script = tmp_path / "poisoned.py"
    script.write_text(POISON)
    attempt.claim(stage)
    change(stage, rundir.STAGE, "method", adjust_interval=4)  # no calibration on the image
    prep = next(stage.parent.glob("prep-*"))
    with tarfile.open(prep / "data" / "train-00000.tar") as shard:
        number = int(shard.getnames()[0].split(".")[0])

    def run_it():
        process = in_processes(script, stage, number)
        _, said = process.communicate(timeout=180)
        return process.returncode, said

    return stage, run_it


def test_a_loss_that_is_not_finite_stops_and_names_step_and_layer(poisoned):
    stage, run_it = poisoned
    code, _ = run_it()
    assert code == 1
    (failed, *_) = events(stage, "failed")
    step = int(failed["message"].split("step ")[1].split(":")[0])
    assert failed["message"].startswith(f"Diverged: step {step}: the loss is not finite; ")
    assert "the images of the batch are not finite" in failed["message"] or (
        "features.0" in failed["message"]
    )
    assert 0 < step <= 44  # an epoch leaves out what does not fill a batch
    assert all(saved["step"] < step for saved in events(stage, "saved"))


def test_a_loss_that_is_not_finite_can_be_skipped(poisoned):
    stage, run_it = poisoned
    change(stage, rundir.STAGE, "train", nonfinite="skip")
    code, said = run_it()
    assert code == 0, said
    rows = [row for row in rundir.read_lines(stage / rundir.HISTORY) if row["kind"] == "step"]
    skipped = [row["step"] for row in rows if row["loss"] is None]
    assert 2 <= len(skipped) <= 4  # once in each epoch that does not leave the image out
    weights = load_file(stage / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert rundir.read_json(stage / rundir.RESULT)["metrics"]["top1"] > 80


@pytest.mark.parametrize(
    ("nonfinite", "words"),
    [("stop", ("features.", "train.lr")), ("skip", ("20 steps in a row were skipped", "train.lr"))],
)
def test_a_learning_rate_that_is_too_high_is_explained(stage, nonfinite, words):
    change(stage, rundir.STAGE, "train", lr=1e18, nonfinite=nonfinite)
    code, said = to_end(stage)
    assert code == 1
    assert "Diverged: step " in said
    assert all(word in said for word in words)
    assert not (stage / "model.safetensors").exists()


@pytest.mark.parametrize("name", [rundir.STAGE, rundir.WHERE, rundir.ATTEMPT])
@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_an_incomplete_file_is_one_line(stage, name, content):
    (stage / name).write_text(content)
    code, said = to_end(stage)
    assert code == 2
    assert said.count("\n") == 1
    assert f"{name} is damaged" in said


HANGING = """
import sys, time
from pipeline.signals import interrupt
from pipeline.execution.world import world

def stuck_in_a_read():
    time.sleep(1000)

with world(hang_timeout=3) as processes:
    processes.any(False)
    if processes.rank:
        stuck_in_a_read()
    processes.any(False)
"""


def test_a_process_that_hangs_ends_and_every_process_shows_its_stack(tmp_path):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    process = in_processes(script)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stuck_in_a_read" in said
    assert "made no step for 3 s; every process shows where it is" in said
    assert said.count("Current thread") == 2
    assert "in any" in said


def test_half_precision_with_loss_scaling_resumes_exactly(stage, tmp_path):
    change(stage, rundir.STAGE, "train", precision="float16", ema=0.9, epochs=2)
    change(stage, rundir.STAGE, "method", adjust_interval=1)
    change(stage, rundir.STAGE, "model", widths=[[8, 8], [16, 16]])  # float16 is slow on a CPU
    other = copy_question(stage, tmp_path / "other")
    assert to_end(other)[0] == 0
    stop_after_first_epoch(stage)
    assert to_end(stage)[0] == 0
    assert differences(other, stage) == []
