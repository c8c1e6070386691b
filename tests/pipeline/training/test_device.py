"""What a processor is asked for, by precision."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.training import device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def recipe(precision, deterministic=False):
    return SimpleNamespace(precision=precision, deterministic=deterministic)


@pytest.fixture
def capability(monkeypatch):
    """Let there be a GPU, as far as asking it goes; leave torch as it was."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[0])
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    benchmark, found = torch.backends.cudnn.benchmark, [(9, 0)]
    yield found
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_tf32_is_used_where_it_is_asked_for_and_nowhere_else(capability, precision):
    assert device.settle(GPU, recipe(precision)) == ""
    wanted = precision == "tf32"
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == wanted
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("where", "found"), [(CPU, (9, 0)), (GPU, (7, 5))])
def test_who_has_no_tf32_is_told(capability, where, found):
    capability[0] = found
    assert "has no TF32, all is computed in float32" in device.settle(where, recipe("tf32"))
    assert device.settle(where, recipe("float32")) == ""


@pytest.mark.parametrize(
    ("where", "precision", "last"),
    [(GPU, "float32", False), (GPU, "tf32", True), (GPU, "bfloat16", True), (GPU, "float16", True),
     (CPU, "tf32", False), (CPU, "bfloat16", False)],
)  # fmt: skip
def test_channels_are_last_where_tensor_cores_work(where, precision, last):
    expected = torch.channels_last if last else torch.contiguous_format
    assert device.layout(where, recipe(precision)) == expected
