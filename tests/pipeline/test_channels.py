"""Test `data.channels` 1 and 3 through all stages, up to images that exported files classify."""

import os
import runpy
import subprocess
import sys

import pytest
from PIL import Image
from safetensors.torch import load_file

from pipeline.planning.named_run import frozen
from pipeline.records import rundir
from tests.launcher import PROJECT, Launcher, module
from tests.pipeline.data.preparing import encoded, picture

pytestmark = pytest.mark.long

QUICK = ("data=imagefolder", "data.image_size=16", "data.resize=16", "train=digits",
         "train.batch_size=16", "train.epochs=2", "train.warmup_epochs=0", "method=dyrep",
         "method.adjust_interval=1", "method.last_adjust_epoch=1", "model.widths=[[4],[8]]",
         "fuse.exports=[pt2,onnx,int8,torchscript]", "eval.shifts=[blur,noise,jpeg]",
         "latency.batch_sizes=[1]", "latency.repeats=10", "latency.also=[plain_folded,onnx]",
         "tracking=disabled")  # fmt: skip
FILES = ("model.onnx", "model.int8.onnx", "model.pt2", "model.ts", "model.safetensors")
COUNT = 20  # number of validation images


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Return the launcher of two runs on coloured and grey images: c1 with 1 channel, c3 with 3."""
    root = tmp_path_factory.mktemp("channels")
    for number in range(80):
        folder = root / "images" / ("val" if number < COUNT else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shown = picture(number, 20, 20, "RGB" if number % 4 < 2 else "L")
        (folder / f"{number:02d}.png").write_bytes(encoded(shown, "PNG"))
    launcher = Launcher(root / "outputs")
    for channels in (1, 3):
        words = (f"data.root={root / 'images'}", f"data.channels={channels}", f"name=c{channels}")
        done = launcher(*words, *QUICK)
        assert done.returncode == 0, done.stdout + done.stderr
    return launcher


def result(launcher, run, stage):
    return rundir.read_json(launcher.root / "runs" / run / stage / rundir.RESULT)["metrics"]


@pytest.mark.parametrize("channels", [1, 3])
def test_all_stages_and_files_agree(shipped, channels):
    run = f"c{channels}"
    fuse, judged = result(shipped, run, "fuse"), result(shipped, run, "eval")
    assert (result(shipped, run, "train")["grown"], fuse["exports"]) == (1, 4)
    assert fuse["max_rel_error"] < 1e-9
    for name in ("unfused", "onnx", "pt2", "torchscript"):
        assert judged["agreement" if name == "unfused" else f"{name}/agreement"] == 100
    assert judged["int8/agreement"] >= 80
    folder = shipped.root / "runs" / run / "fuse"
    first = load_file(folder / "model.safetensors")["features.0.weight"]
    assert first.shape == (4, channels, 3, 3)
    page = (folder / "MODEL_CARD.md").read_text()
    assert f"['batch', {channels}, 16, 16]: {'grey' if channels == 1 else 'RGB'}" in page


def test_prep_counts_the_images_whose_colours_are_not_used(shipped):
    assert [result(shipped, run, "prep")["odd_files"] for run in ("c1", "c3")] == [40, 0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("file", FILES[:4])
def test_the_example_classifies_coloured_and_grey_images_as_eval_does(shipped, channels, file):
    run = shipped.root / "runs" / f"c{channels}"
    answers = load_file(run / "eval" / "predictions.safetensors")
    key = {"model.onnx": "onnx", "model.int8.onnx": "int8", "model.pt2": "pt2",
           "model.ts": "torchscript"}[file]  # fmt: skip
    images = sorted((shipped.root.parent / "images" / "val").glob("*/*.png"))
    done = subprocess.run(
        [sys.executable, "examples/deploy.py", "--trust", "--top=1", run / "fuse" / file, *images],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    classes = [line.rpartition(": ")[2].split()[0] for line in done.stdout.splitlines()]
    # Pillow and torch resize with differences of 1 of 255, which may change one prediction
    same = sum(t == "ab"[n] for t, n in zip(classes, answers[key][:, 0].tolist(), strict=True))
    assert same >= COUNT - 1


def evaluated(file, data):
    done = module("evaluate", file, "--data", data, "--trust", environment={**os.environ})
    return done, done.stdout.partition("top-1 ")[2].partition(" %")[0]


@pytest.mark.parametrize("file", FILES)
def test_any_file_of_one_channel_can_be_evaluated(shipped, file):
    run = shipped.root / "runs" / "c1"
    done, top1 = evaluated(run / "fuse" / file, run)
    assert done.returncode == 0, done.stderr
    name = {"model.onnx": "onnx", "model.int8.onnx": "int8"}.get(file, "fused")
    assert float(top1) == pytest.approx(result(shipped, "c1", "eval")[f"{name}/top1"], abs=0.01)


def test_a_network_for_rgb_accepts_grey_data_and_one_for_grey_images_refuses_rgb(shipped):
    runs = shipped.root / "runs"
    done, top1 = evaluated(runs / "c3" / "fuse" / "model.onnx", runs / "c1")
    assert done.returncode == 0 and top1
    done, _ = evaluated(runs / "c1" / "fuse" / "model.onnx", runs / "c3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is for grey images" in done.stderr and "data.channels=1" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.channels=2"], "data.channels=2 must be 1 or 3"),
        (["data.channels=null"], "data.channels=null must be 1 or 3"),
        (["data=mnist", "data.root=/", "data.channels=grey"], "data.channels=grey must be 1 or 3"),
        (["model=custom", "model.target=three:net"],
         "three:net is for images of 3 channels, and data.channels=1; give its function a "
         "parameter in_channels, which gets that number, or set data.channels=3"),
        (["model=custom", "model.target=three:one", "data.channels=3"],
         "three:one is for images of 1 channel, and data.channels=3"),
    ],
)  # fmt: skip
def test_a_wrong_number_of_channels_is_refused_in_one_line(
    inside, tmp_path, monkeypatch, words, message
):
    (tmp_path / "three.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, channels=3):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, num_classes))\n"
        "def one(num_classes): return net(num_classes, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    code, _, err = inside(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not inside.root.exists()


def test_a_run_of_an_earlier_release_keeps_its_three_channels(launch):
    assert launch("name=old", "data=digits", "data.channels=3", "stage=prep").returncode == 0
    run = launch.root / "runs" / "old"
    settings = rundir.read_yaml(run / "config.yaml")
    assert settings["data"].pop("channels") == 3
    rundir.write_yaml(run / "config.yaml", settings)
    assert "channels" not in rundir.read_yaml(run / "prep" / rundir.STAGE)["config"]["data"]
    done = launch("name=old", "data=digits", "stage=prep", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "finished before" in done.stdout
    assert frozen(run).data.channels == 3


def test_a_grey_network_gets_the_luminance_of_a_coloured_image(tmp_path):
    spec = {"resize": 16, "image_size": 16, "interpolation": "bilinear", "mean": [0.4],
            "std": [0.2], "classes": ["a"]}  # fmt: skip
    prepare = runpy.run_path(str(PROJECT / "examples/deploy.py"))["prepare"]
    shown = picture(3, 20, 24)
    shown.save(tmp_path / "c.png")
    shown.convert("L").save(tmp_path / "g.png")
    Image.merge("RGB", [shown.convert("L")] * 3).save(tmp_path / "t.png")
    colour, grey, thrice = (prepare(tmp_path / f"{name}.png", spec) for name in "cgt")
    assert colour == grey == thrice
    assert colour[1] == (1, 1, 16, 16) and len(colour[0]) == 256
