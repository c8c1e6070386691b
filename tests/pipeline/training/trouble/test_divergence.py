"""Test that a loss that is not finite stops the training with its cause, or skips the step."""

import tarfile

import pytest

pytest.importorskip("nvidia.dali")

import torch
from safetensors.torch import load_file

from pipeline.records import attempt, rundir
from tests.launcher import in_processes
from tests.pipeline.training.trouble.stages import change, events, to_end

POISON = """
import sys
from pathlib import Path
from pipeline import worker
from pipeline.data.loaders.base import Loader

batches = Loader.__iter__

def poisoned(self):
    for batch in batches(self):
        if self.spec.split == "train" and (batch.numbers == int(sys.argv[2])).any():
            batch.images.fill_(float("nan"))
        yield batch

Loader.__iter__ = poisoned
sys.exit(worker.main(Path(sys.argv[1])))
"""


@pytest.fixture
def poisoned(stage, tmp_path):
    """Return the stage, and a function that runs it with one image that makes its batch NaN."""
    script = tmp_path / "poisoned.py"
    script.write_text(POISON)
    attempt.claim(stage)
    # so that no calibration uses the image
    change(stage, rundir.STAGE, "method", adjust_interval=4)
    prep = next(stage.parent.glob("prep-*"))
    with tarfile.open(prep / "data" / "train-00000.tar") as shard:
        number = int(shard.getnames()[0].split(".")[0])

    def run_it():
        process = in_processes(script, stage, number)
        _, errors = process.communicate(timeout=180)
        return process.returncode, errors

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
    # an epoch drops the last incomplete batch, so the image may first come in epoch 2
    assert 0 < step <= 44
    assert all(saved["step"] < step for saved in events(stage, "saved"))


def test_a_loss_that_is_not_finite_can_be_skipped(poisoned):
    stage, run_it = poisoned
    change(stage, rundir.STAGE, "train", nonfinite="skip")
    code, output = run_it()
    assert code == 0, output
    rows = [row for row in rundir.read_lines(stage / rundir.HISTORY) if row["kind"] == "step"]
    skipped = [row["step"] for row in rows if row["loss"] is None]
    assert 2 <= len(skipped) <= 4  # once in each epoch whose dropped batch does not hold the image
    weights = load_file(stage / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert rundir.read_json(stage / rundir.RESULT)["metrics"]["top1"] > 80


@pytest.mark.parametrize(
    ("nonfinite", "words"),
    [("stop", ("features.", "train.lr")), ("skip", ("20 steps in a row were skipped", "train.lr"))],
)
def test_a_learning_rate_that_is_too_high_is_explained(stage, nonfinite, words):
    change(stage, rundir.STAGE, "train", lr=1e18, nonfinite=nonfinite)
    code, done = to_end(stage)
    assert code == 1
    assert "Diverged: step " in done
    assert all(word in done for word in words)
    assert not (stage / "model.safetensors").exists()
