"""Test `training.device`: TF32 and the memory layout follow the precision and the device."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.training import device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def recipe(precision, deterministic=False):
    return SimpleNamespace(precision=precision, deterministic=deterministic)


@pytest.fixture
def capability(monkeypatch):
    """Return a list with the compute capability that torch reports; restore torch's flags after."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[0])
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    benchmark, found = torch.backends.cudnn.benchmark, [(9, 0)]
    yield found
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_tf32_is_enabled_only_by_its_precision(capability, precision):
    assert device.configure(GPU, recipe(precision)) == ""
    wanted = precision == "tf32"
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == wanted
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("where", "found"), [(CPU, (9, 0)), (GPU, (7, 5))])
def test_a_device_without_tf32_is_reported(capability, where, found):
    capability[0] = found
    assert "has no TF32, all is computed in float32" in device.configure(where, recipe("tf32"))
    assert device.configure(where, recipe("float32")) == ""


@pytest.mark.parametrize(
    ("where", "precision", "last"),
    [(GPU, "float32", False), (GPU, "tf32", True), (GPU, "bfloat16", True), (GPU, "float16", True),
     (CPU, "tf32", False), (CPU, "bfloat16", False)],
)  # fmt: skip
def test_the_memory_layout_is_channels_last_for_tensor_cores(where, precision, last):
    expected = torch.channels_last if last else torch.contiguous_format
    assert device.layout(where, recipe(precision)) == expected
