"""Test `training.resume`: checkpoints of another training, without their history, or damaged."""

import shutil

import pytest

pytest.importorskip("nvidia.dali")


from pipeline.contract.table import STAGES
from pipeline.display.errors import UserError
from pipeline.execution import work
from pipeline.records import rundir, store
from pipeline.records.schemas import Attempt, Question
from pipeline.training import resume
from tests.pipeline.training.trouble.stages import events, to_end


class Alone:
    """A stand-in for the process group of a training with one process."""

    rank, world_size = 0, 1

    def from_main(self, find):
        return find()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.lr", 0.05, "train.lr 0.05 → 0.1"),
        ("train.batch_size", 32, "train.batch_size 32 → 64"),
        ("DALI", "1.0", "DALI 1.0 → "),
        ("prepared data", "abc", "prepared data abc → "),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(stage, undisturbed, key, value, message):
    shutil.copytree(undisturbed / "checkpoints", stage / "checkpoints")
    shutil.copy(undisturbed / rundir.HISTORY, stage)
    shutil.copy(undisturbed / rundir.GROWTH, stage)
    rundir.write_json(stage / Attempt.FILE, {"attempt": 1})
    context = work._context(STAGES["train"], stage, store.read(Question, stage))
    own = resume.identity(context)
    assert resume.find(context, Alone(), own).stem.startswith("step-00000088")
    for path in (stage / "checkpoints").glob("step-*.json"):
        seal = rundir.read_json(path)
        seal["identity"][key] = value
        rundir.write_json(path, seal)
    with pytest.raises(UserError, match="was written for something else") as refused:
        resume.find(context, Alone(), own)
    assert message in str(refused.value)


def test_a_checkpoint_newer_than_the_history_is_skipped(stage, undisturbed):
    shutil.copytree(undisturbed / "checkpoints", stage / "checkpoints")
    rows = (undisturbed / rundir.HISTORY).read_text().splitlines(keepends=True)
    (stage / rundir.HISTORY).write_text("".join(rows[:70]))
    shutil.copy(undisturbed / rundir.GROWTH, stage)
    rundir.write_json(stage / Attempt.FILE, {"attempt": 1})
    context = work._context(STAGES["train"], stage, store.read(Question, stage))
    found = resume.find(context, Alone(), resume.identity(context))
    assert found.stem.startswith("step-00000066")
    (passed_over,) = events(stage, "passed_over")
    assert "which has 70" in passed_over["reason"]


def test_checkpoints_without_their_history_are_kept_and_named(stage, undisturbed):
    shutil.copytree(undisturbed / "checkpoints", stage / "checkpoints")
    files = sorted(path.name for path in (stage / "checkpoints").iterdir())
    rundir.write_json(stage / Attempt.FILE, {"attempt": 1})
    context = work._context(STAGES["train"], stage, store.read(Question, stage))
    with pytest.raises(UserError, match=r"rows of history.jsonl, which has 0"):
        resume.find(context, Alone(), resume.identity(context))
    assert sorted(path.name for path in (stage / "checkpoints").iterdir()) == files


def test_no_intact_checkpoint_is_an_error_not_a_new_beginning(stage, undisturbed):
    shutil.copytree(undisturbed / "checkpoints", stage / "checkpoints")
    shutil.copy(undisturbed / rundir.HISTORY, stage)
    for path in (stage / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    code, done = to_end(stage)
    assert code == 2
    assert "no checkpoint can be used (step-00000088" in done
