"""Test `stages.export`: each file gives the network's scores, has a card, and runs on its own."""

import json
import subprocess
import sys
from typing import get_args
from zipfile import ZipFile

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import numpy
import torch
import torchvision
from torch import nn

from dyrep.fusion import fold_norms
from pipeline.config.base import ExportFormat
from pipeline.stages.export import formats, runtime
from pipeline.stages.export.equalize import equalized, weight_ranges
from pipeline.stages.export.formats import FORMATS, Format, Source
from pipeline.stages.export.verify import Difference, scores_elsewhere
from pipeline.stages.export.write import ExportError, write

pytestmark = pytest.mark.long


def pictures(count):
    """Return random images of different mean colours, so that a network gives them different classes."""
    draw = torch.Generator().manual_seed(1)
    colours = 2 * torch.randn(count, 3, 1, 1, generator=draw)
    return colours + torch.randn(count, 3, 16, 16, generator=draw)


@torch.no_grad()
def network():
    """Return a network that predicts each of its four classes about equally often."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    scores = model(pictures(500))
    model[-1].weight /= scores.std(0)[:, None]
    model[-1].bias.copy_((model[-1].bias - scores.mean(0)) / scores.std(0))
    return model


def source(model, images):
    card = json.dumps({"classes": list("abcd")})
    return Source(network=model, images=images, card=card, opset=18, calibration=images)


@pytest.fixture(scope="module")
def images():
    return pictures(70)


@pytest.fixture(scope="module")
def files(tmp_path_factory, images):
    """Return the folder of the exported files, and the outcome of each format."""
    folder = tmp_path_factory.mktemp("exported")
    wanted = ["pt2", "onnx", "int8", "torchscript"]
    return folder, dict(write(source(network(), images), folder, wanted, images))


def test_the_table_and_the_configuration_know_the_same_formats():
    assert set(get_args(ExportFormat)) == set(FORMATS)


@pytest.mark.parametrize("name", ["pt2", "onnx", "torchscript"])
def test_a_loaded_file_gives_the_scores_of_the_network(files, images, name):
    check(*files, images, name)


@pytest.mark.skipif(bool(FORMATS["aotinductor"].missing()), reason="g++ is not installed")
@pytest.mark.slow
def test_a_loaded_compiled_file_gives_the_scores_of_the_network(tmp_path, images):
    outcomes = dict(write(source(network(), images), tmp_path, ["aotinductor"], images))
    check(tmp_path, outcomes, images, "aotinductor")
    cut = tmp_path / "cut.aoti.pt2"
    cut.write_bytes((tmp_path / "model.aoti.pt2").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut.aoti.pt2 is damaged"):
        runtime.load(cut, trust=True)


def check(folder, outcomes, images, name):
    assert outcomes[name]["max_rel_error"] <= 1e-4
    assert outcomes[name]["flips"] == 0
    run, _ = runtime.load(folder / FORMATS[name].file, trust=True)
    assert json.loads(runtime.card(folder / FORMATS[name].file))["classes"] == list("abcd")
    with torch.inference_mode():
        for count in (1, 2, 33):  # any number of images
            torch.testing.assert_close(
                run(images[:count]), network()(images[:count]), rtol=1e-4, atol=1e-5
            )


def test_int8_is_close_and_carries_the_card(files, images):
    folder, outcomes = files
    assert 0 < outcomes["int8"]["max_rel_error"] < 0.2
    run, device = runtime.load(folder / "model.int8.onnx")
    assert device == "cpu"
    assert json.loads(runtime.card(folder / "model.int8.onnx"))["classes"] == list("abcd")
    agree = (run(images).argmax(1) == network()(images).argmax(1)).double().mean()
    assert agree > 0.97
    assert "note" not in outcomes["int8"]


def apart(model):
    """Scale channels between the two convolutions of `network()` by 0.01 to 100, and back; return it.

    The network computes the same function as before.
    """
    scale = torch.logspace(-2, 2, 8)
    with torch.no_grad():
        model[0].weight *= scale[:, None, None, None]
        model[0].bias *= scale
        model[3].weight /= scale[None, :, None, None]
    return model


def test_equalized_channels_compute_the_same(images):
    model = apart(network()).double()
    batch = images.double()
    equal = equalized(model, batch[:2])
    assert weight_ranges(model)[0]["spread"] > 50
    assert weight_ranges(equal)[0]["spread"] < 5
    assert Difference.between(model(batch), equal(batch)).max_rel_error < 1e-12


def test_equalizing_a_resnet_does_not_change_its_function():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval().double()
    batch = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fold_norms(model, batch)
    with torch.no_grad():
        model.layer1[0].conv1.weight *= torch.logspace(-1, 1, 64)[:, None, None, None].double()
    equal = equalized(model, batch)
    assert Difference.between(model(batch), equal(batch)).max_rel_error < 1e-12
    assert not torch.equal(model.layer1[0].conv1.weight, equal.layer1[0].conv1.weight)
    assert torch.equal(model.layer1[0].conv2.weight[:, 0, 0, 0].sign(),
                       equal.layer1[0].conv2.weight[:, 0, 0, 0].sign())  # fmt: skip


def test_a_layer_that_is_called_twice_is_not_equalized(images):
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
    equal = equalized(model, images[:2])
    assert torch.equal(equal[0].weight, conv.weight)


def test_equalizing_rescues_int8_where_channels_have_different_scales(tmp_path, images):
    model = apart(network())
    before = formats._quantize(source(model, images), model, tmp_path / "before.onnx")
    assert before < 60
    ((_, outcome),) = write(source(model, images), tmp_path, ["int8"], images)
    assert outcome["flips"] <= 1
    assert f"{before:.1f} % of the training images kept their class" in outcome["note"]
    assert outcome["note"].endswith("so these were taken")


def test_an_export_leaves_no_other_files(files):
    folder, outcomes = files
    assert {path.name for path in folder.iterdir()} == {
        outcome["file"] for outcome in outcomes.values() if "file" in outcome
    }


def test_a_format_without_its_packages_is_skipped_with_the_line_that_installs_them(
    tmp_path, images, monkeypatch
):
    lacking = Format(file="model.x", write=lambda *_: None, needs=("no_such_runtime", "json"))
    monkeypatch.setitem(FORMATS, "onnx", lacking)
    (_, first), (_, second) = write(
        source(network(), images), tmp_path, ["onnx", "torchscript"], images
    )
    assert first == {
        "skipped": "no_such_runtime not found: pip install onnx onnxruntime onnxscript"
    }
    assert second["file"] == "model.ts"


class Depends(nn.Module):
    """A network whose control flow depends on its input, so that it cannot be exported."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else self.inner(-x)


def test_a_failed_export_is_reported_and_other_files_stay(tmp_path, images):
    outcomes = dict(write(source(network(), images), tmp_path, ["torchscript"], images))
    assert outcomes["torchscript"]["flips"] == 0
    (_, failed), *_ = write(source(Depends().eval(), images), tmp_path, ["pt2"], images)
    assert "data-dependent" in failed["failed"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.ts"]


def test_a_file_that_computes_something_else_is_refused(tmp_path, images, monkeypatch):
    def wrong(given, path):
        other = Source(
            network=nn.Sequential(given.network, nn.Softmax(1)),
            images=given.images, card=given.card, opset=18,
        )  # fmt: skip
        formats._pt2(other, path)

    monkeypatch.setitem(FORMATS, "pt2", Format(file="model.pt2", write=wrong))
    with pytest.raises(
        ExportError, match=r"^model.pt2 differs by .* leave pt2 out of fuse.exports"
    ):
        list(write(source(network(), images), tmp_path, ["pt2"], images))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pt2", "onnx", "torchscript"])
def test_a_damaged_file_is_named(files, tmp_path, name):
    folder, _ = files
    cut = tmp_path / FORMATS[name].file
    content = (folder / cut.name).read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{cut.name} is damaged .* export it again"):
        runtime.load(cut, trust=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_file_that_was_built_for_a_gpu_is_not_called_damaged(tmp_path):
    path = tmp_path / "model.aoti.pt2"
    with ZipFile(path, "w") as archive:
        archive.writestr("model/data/x.wrapper_metadata.json", '{"AOTI_DEVICE_KEY": "cuda"}')
    with pytest.raises(runtime.Elsewhere, match="was built for a GPU, and there is none here"):
        runtime.load(path, trust=True)


def test_a_process_that_dies_is_reported_with_its_signal(tmp_path, images, monkeypatch):
    """A script that prints a warning and then crashes stands in for the runtime."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\nprint('a warning', file=sys.stderr)\nos.kill(os.getpid(), 11)"
    )
    monkeypatch.setattr(runtime, "__file__", str(script))
    with pytest.raises(RuntimeError, match=r"^it was ended by signal 11$"):
        scores_elsewhere(tmp_path / "model.onnx", images)


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no exported network; known are .onnx"):
        runtime.load(tmp_path / "model.h5")


def test_nan_scores_are_not_a_small_difference():
    scores = torch.zeros(2, 3)
    assert not Difference.between(scores, scores + float("nan")).max_rel_error <= 1


def test_the_runtime_imports_nothing_of_this_project():
    code = f"import sys; sys.argv = ['x']; import runpy; runpy.run_path({runtime.__file__!r})"
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", "-c", code], capture_output=True, text=True
    ).stderr
    assert "torch" in done
    assert not [
        line for line in done.splitlines() if line.split()[-1:] in (["dyrep"], ["pipeline"])
    ]


def test_a_file_that_needs_this_project_does_not_stand_alone(files, images, tmp_path, monkeypatch):
    """The test process has imported the project, as a file that needs the project would do."""
    folder, _ = files
    numpy.save(tmp_path / "images.npy", images.numpy())
    words = [str(folder / "model.ts"), str(tmp_path / "images.npy"), str(tmp_path / "scores.npy")]
    monkeypatch.setattr(sys, "argv", ["runtime.py", *words])
    with pytest.raises(RuntimeError, match="does not stand alone"):
        runtime.main()
    assert not (tmp_path / "scores.npy").exists()
