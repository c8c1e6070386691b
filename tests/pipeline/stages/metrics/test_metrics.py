"""Test `stages.metrics` against numbers computed by hand, and the command `evaluate` on each file."""

import base64
import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.data.shards import Manifest, Pictures
from pipeline.evaluate import main
from pipeline.records import rundir
from pipeline.stages.metrics import files, scores
from pipeline.stages.metrics.mistakes import Gallery, best
from pipeline.stages.metrics.shifts import SHIFTS, Pixels
from tests.launcher import PROJECT


def test_answers_are_the_five_best_classes_and_the_confidence():
    table = scores.answers(torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 2.0]]))
    assert table[0, :5].tolist() == [1, 2, 0, -1, -1]
    assert table[0, 5].item() == pytest.approx(torch.tensor([0.0, 3.0, 1.0]).softmax(0)[1].item())
    assert table[1, :3].tolist() == [0, 1, 2], (
        "of equal scores, the class with the lower number comes first"
    )


TABLE = torch.tensor(
    [
        [0, 1, 2, -1, -1, 0.95],
        [0, 1, 2, -1, -1, 0.95],
        [1, 0, 2, -1, -1, 0.95],
        [1, 2, 0, -1, -1, 0.55],
    ],
    dtype=torch.float64,
)
LABEL = torch.tensor([0, 0, 0, 2])


def test_accuracy_and_calibration_equal_a_computation_by_hand():
    found = scores.accuracy(TABLE, LABEL)
    assert (found["top1"], found["top5"]) == (50, 100)
    by_hand = 3 / 4 * abs(0.95 - 2 / 3) + 1 / 4 * abs(0.55 - 0)
    assert found["ece"] == pytest.approx(100 * by_hand)


def test_reliability_bins_sum_to_the_calibration_error():
    bins = scores.reliability(TABLE, LABEL)
    assert [one["images"] for one in bins] == [1, 3]
    error = sum(one["images"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / 4
    assert error == pytest.approx(scores.accuracy(TABLE, LABEL)["ece"])


def test_each_class_is_judged_by_its_own_images():
    assert scores.per_class(TABLE, LABEL, 3) == [pytest.approx(200 / 3), None, 0]


def test_confusion_counts_each_pair_of_classes():
    counts = scores.confusion(TABLE, LABEL, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert scores.most_confused(counts, 5) == [
        {"label": 0, "predicted": 1, "images": 1},
        {"label": 2, "predicted": 1, "images": 1},
    ]


def test_the_gallery_keeps_the_most_confident_mistakes():
    gallery = Gallery(1)
    pixels = torch.rand(4, 3, 8, 8)
    gallery.show(pixels, LABEL, torch.tensor([7, 8, 9, 10]), TABLE)
    (kept,) = gallery.kept
    assert (kept.number, kept.label, kept.predicted) == (9, 0, 1)
    with Image.open(io.BytesIO(base64.b64decode(kept.png))) as image:
        shown = torch.tensor(list(image.tobytes())).reshape(8, 8, 3).permute(2, 0, 1) / 255
    assert (shown - pixels[2]).abs().max() < 0.01
    both = Gallery(5)
    both.show(pixels, LABEL, torch.tensor([7, 8, 9, 10]), TABLE)
    assert best(both.kept[::-1], 5) == both.kept, (
        "the order in which processes hand in their mistakes does not matter"
    )


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shifted_image_is_the_same_in_any_batch(name):
    pixels, numbers = torch.rand(6, 3, 32, 32), torch.arange(6)
    whole = SHIFTS[name](pixels, numbers)
    parts = [SHIFTS[name](pixels[i::2], numbers[i::2]) for i in (0, 1)]
    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])
    assert whole.min() >= 0 and whole.max() <= 1
    assert 0.01 < (whole - pixels).abs().mean() < 0.3


def test_normalising_pixels_can_be_reversed():
    pixels, given = Pixels((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(pixels.of(pixels.normalised(given)), given)


@pytest.fixture
def evaluate(capsys):
    """Return a function that calls the command in this process, which saves four seconds of imports."""

    def call(*arguments):
        code = main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def run(finished):
    return finished.root / "runs" / "small"


def test_the_stage_judged_every_file_on_every_image(run):
    metrics = rundir.read_json(run / "eval" / rundir.RESULT)["metrics"]
    predictions = load_file(run / "eval" / "predictions.safetensors")
    facts = rundir.read_json(run / "eval" / "eval.json")
    for name in ("pt2", "onnx", "int8"):
        hits = predictions[name][:, :1] == predictions["label"]
        assert metrics[f"{name}/top1"] == pytest.approx(100 * hits.double().mean().item())
    for name in ("pt2", "onnx"):
        assert metrics[f"{name}/agreement"] == 100
        assert torch.equal(predictions[name][:, 0], predictions["fused"][:, 0])
    assert metrics["int8/agreement"] > 97
    assert sum(map(sum, facts["confusion"])) == 360
    wrong = int((predictions["fused"][:, :1] != predictions["label"]).sum())
    assert len(facts["mistakes"]) == min(wrong, 24)


@pytest.mark.parametrize("file", ["fuse/model.onnx", "fuse/model.safetensors", "checkpoint"])
def test_any_file_is_evaluated_by_command(evaluate, run, tmp_path, file):
    newest = max((run / "train" / "checkpoints").glob("*.safetensors"))
    path = newest if file == "checkpoint" else run / file
    code, out, err = evaluate(path, "--data", run, "--json", tmp_path / "found.json")
    assert code == 0, err
    metrics = rundir.read_json(run / "eval" / rundir.RESULT)["metrics"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == 360
    assert found["top1"] == pytest.approx(metrics["fused/top1"], abs=0.3)
    assert f"top-1 {found['top1']:.2f} %" in out


def test_data_of_other_classes_is_refused(evaluate, run, tmp_path):
    other = tmp_path / "data"
    other.mkdir()
    manifest = rundir.read_json(run / "prep" / "data" / rundir.MANIFEST)
    rundir.write_json(
        other / rundir.MANIFEST, {**manifest, "classes": [*manifest["classes"], "ten"]}
    )
    assert len(Manifest.load(other).classes) == 11
    code, _, err = evaluate(run / "fuse" / "model.safetensors", "--data", other)
    assert code == 2
    assert err.count("\n") == 1
    assert "knows 10 classes" in err and "has 11" in err


def test_a_damaged_file_is_named(evaluate, run, tmp_path):
    for name in ("model.onnx", "model.safetensors"):
        cut = tmp_path / name
        cut.write_bytes((run / "fuse" / name).read_bytes()[:5000])
        code, _, err = evaluate(cut, "--data", run)
        assert code == 2
        assert f"error: {cut} is damaged" in err and err.count("\n") == 1


def test_an_image_is_classified_from_the_file_alone(run, tmp_path):
    """`examples/deploy.py` predicts the same classes with each file as the stage `eval` did."""
    predictions = load_file(run / "eval" / "predictions.safetensors")
    prepared = run / "prep" / "data"
    split = Manifest.load(prepared).splits["val"]
    pictures = Pictures(prepared, split)
    paths, expected = [], []
    for place in range(4):
        _, number = pictures.target(place)
        (row,) = (predictions["number"][:, 0] == number).nonzero().flatten().tolist()
        expected.append(str(int(predictions["fused"][row, 0])))
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(pictures.read(place))
    for file, *trust in (["model.onnx"], ["model.pt2", "--trust"], ["model.int8.onnx"]):
        command = [sys.executable, "-I", PROJECT / "examples/deploy.py", *trust]
        done = subprocess.run(
            [*command, run / "fuse" / file, *paths],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        classes = [line.partition(": ")[2].split()[0] for line in done.stdout.splitlines()]
        assert classes == expected, file


def test_a_checkpoint_of_another_architecture_is_refused(evaluate, run, tmp_path):
    copied = tmp_path / "stages" / "train-x"
    copied.mkdir(parents=True)
    for name in ("model.safetensors", "structure.json", rundir.STAGE):
        (copied / name).write_bytes((run / "train" / name).read_bytes())
    text = (copied / rundir.STAGE).read_text()
    (copied / rundir.STAGE).write_text(text.replace("- 128\n", "- 96\n"))
    prep = (run / "prep").resolve()
    (tmp_path / "stages" / prep.name).symlink_to(prep)
    code, _, err = evaluate(copied / "model.safetensors", "--data", run)
    assert code == 2
    assert "is of another architecture" in err and err.count("\n") == 1


def test_the_averaged_weights_of_a_checkpoint_are_evaluated(monkeypatch, tmp_path):
    """A training validates the averaged weights as well."""
    saved = {
        "structure": {"blocks": []},
        "model": {"w": torch.zeros(1)},
        "ema": {"n_averaged": torch.tensor(3), "module.w": torch.ones(1)},
    }
    monkeypatch.setattr(files.checkpoint, "load", lambda _: saved)
    state, structure = files._checkpoint(tmp_path)
    assert list(state) == ["w"] and state["w"].item() == 1
    assert structure == saved["structure"]
