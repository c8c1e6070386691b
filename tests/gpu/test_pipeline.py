"""Test all stages on a CUDA device; without one, the tests are skipped."""

import json

import pytest
import torch

from benchmarks import chaos

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DATA = "data.loader=memory"  # images stay on the device; test_data.py tests DALI
VARIANTS = "compiled,cuda_graphs,channels_last,tf32,bfloat16,pt2,torchscript,onnx,int8"


def read(launch, stage, name):
    return json.loads((launch.root / "runs" / "gpu" / stage / name).read_text())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_training_grows_and_learns(launch, precision):
    done = launch(
        "name=gpu", "stage.run=[prep,train]", "tracking=disabled", f"train.precision={precision}",
        DATA, "train.epochs=8", "method.adjust_interval=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    found = read(launch, "train", "result.json")["metrics"]
    assert found["top1"] > 80
    assert found["grown"] > 0


def test_all_stages_run_and_every_latency_variant_agrees(launch):
    done = launch(
        "name=gpu", "tracking=disabled", DATA, "train.epochs=4", "method.adjust_interval=2",
        "latency.batch_sizes=[1,8]", "latency.repeats=20", f"latency.also=[{VARIANTS}]",
        "fuse.exports=[pt2,onnx,int8,torchscript]", "eval.shifts=[blur,noise,jpeg]",
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert not read(launch, "latency", "latency.json")["skipped"]
    assert read(launch, "latency", "latency.json")["device"] == torch.cuda.get_device_name()
    times = read(launch, "latency", "result.json")["metrics"]
    for name in VARIANTS.split(","):
        least = 90 if name in ("tf32", "bfloat16", "int8") else 100
        assert times[f"{name}/agreement"] >= least, name
    judged = read(launch, "eval", "result.json")["metrics"]
    for name in ("unfused", "pt2", "torchscript", "onnx"):
        assert judged[f"{name}/agreement"] == 100, name


def test_two_kills_change_no_bit(tmp_path):
    settings = ["cluster.processes_per_node=1", "train.epochs=6", DATA]
    report = chaos.rounds(tmp_path, kills=2, seed=52, settings=settings)
    assert report["equal"] == report["rounds"] >= 1, report["differences"]
