"""Test that `evaluate` refuses, in one line, a file that is damaged or does not match its card."""

import json
import os
import struct
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pipeline import evaluate
from pipeline.display.errors import UserError
from tests.pipeline.hostile import CARD, deep, pickled, unread


@pytest.fixture
def data(tmp_path):
    return unread(tmp_path / "data")


HEADERS = {
    "no JSON": "{",
    "no object": "[]",
    "too deep": "[" * 100_000,
    "no preprocess": "{}",
    "classes are no names": json.dumps(deep({"preprocess": CARD["preprocess"] | {"classes": 7}})),
    "an enormous image": json.dumps(deep({"preprocess": CARD["preprocess"] | {"resize": 10**9}})),
    "std of 0": json.dumps(deep({"preprocess": CARD["preprocess"] | {"std": [0, 1, 1]}})),
    "a family that is none": json.dumps(deep({"architecture": {"family": "os.system"}})),
    "an address": json.dumps(deep({"architecture": {"family": "timm", "name": "hf-hub:x/y"}})),
    "another network": json.dumps(CARD),
    "none": None,
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_header_of_safetensors_is_refused_in_one_line(tmp_path, data, capsys, case):
    path = tmp_path / "model.safetensors"
    text = HEADERS[case]
    save_file({"w": torch.zeros(1)}, path, {"card.json": text} if text is not None else None)
    assert evaluate.main([str(path), "--data", str(data)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and len(errors) < 2000


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, struct.pack("<Q", 2**62), struct.pack("<Q", 2) + b"{}", b"PK\3\4" * 9,
     struct.pack("<Q", 40) + b'{"state":{"dtype":"F32","shape":[9999999'.ljust(40)],
    ids=range(6),
)  # fmt: skip
@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.pt2", "model.ts"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, data, capsys, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    assert evaluate.main([str(path), "--data", str(data)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: None])
@pytest.mark.parametrize("name", ["x.safetensors", "x.onnx", "x.pt2"])
def test_a_path_without_a_regular_file_is_refused(tmp_path, data, capsys, make, name):
    make(tmp_path / name)
    assert evaluate.main([str(tmp_path / name), "--data", str(data)]) == 2
    there = (tmp_path / name).exists()
    assert ("no regular file" if there else "no such file") in capsys.readouterr().err


def test_a_checkpoint_of_torch_is_refused_and_not_unpickled(tmp_path, data, capsys):
    for name in ("model.pth", "model.pt", "model.pkl", "model.ckpt"):
        path = tmp_path / name
        path.write_bytes(pickled(tmp_path / "mark"))
        assert evaluate.main([str(path), "--data", str(data)]) == 2
        assert "nor an exported network; known are .safetensors, .onnx" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()


def fails(images):
    raise RuntimeError("invalid\nargument")


@pytest.mark.parametrize("network", [fails, lambda images: images, lambda images: images[:, 0, 0]])
def test_a_network_that_does_not_match_its_card_is_refused(network):
    opened = SimpleNamespace(network=network, preprocess=SimpleNamespace(classes=["a", "b"]))
    with pytest.raises(UserError, match=r"^x.onnx (does not run|gives scores)"):
        evaluate._scores("x.onnx", opened, torch.zeros(3, 3, 8, 8))
