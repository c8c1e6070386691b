"""Test the stage `fuse`: the check of the fused network, and the files that the stage writes."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dyrep
from pipeline.config.model import Vgg
from pipeline.networks import architectures
from pipeline.records import rundir
from pipeline.stages import fuse

CLOSE = {"worst": [["a", 1e-15], ["b", 1e-16]], "max_rel_error": 1e-15}


def test_equal_networks_pass():
    fuse._gate({"real": CLOSE, "times 1000": CLOSE}, 1e-9)
    fuse._gate({"real": {"worst": [], "max_rel_error": 0.0}}, 1e-9)  # a network without branches


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"worst": [["b", 1e-3], ["a", 0.0]], "max_rel_error": 1e-4}, "b: .* 1.0e-03"),
        ({"worst": [["b", math.nan], ["a", 0.0]], "max_rel_error": math.nan}, "b: .* nan"),
        ({"worst": [["a", 1e-15]], "max_rel_error": 1e-3}, "the scores: .* 1.0e-03"),
    ],
)
def test_a_difference_is_named_with_its_layer_and_images(found, words):
    with pytest.raises(dyrep.FusionError, match=rf"^{words} on times 1000 inputs .*fuse.tolerance"):
        fuse._gate({"real": CLOSE, "times 1000": found}, 1e-9)


def test_images_are_scaled_to_show_small_differences():
    images = torch.rand(50, 3, 4, 4)
    kinds = dict(fuse._inputs(images))
    assert list(kinds) == ["real", "times 1000", "over 1000", "channels apart"]
    apart = kinds["channels apart"].mean(dim=(0, 2, 3))
    assert apart[0] / apart[2] > 1e5
    assert {len(batch) for batch in kinds.values()} == {50, 32}


def test_the_weights_have_the_keys_of_the_architecture_and_carry_the_card(finished):
    folder = finished.root / "runs" / "small" / "fuse"
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card.json"])
    plain = architectures.build(Vgg.model_validate(card["architecture"]), 10, channels=1)
    plain.load_state_dict(load_file(path), strict=True)
    facts = rundir.read_json(folder / "fusion.json")
    trained = rundir.read_json(folder.parent / "train" / rundir.RESULT)["metrics"]
    assert card["metrics"]["top1"] == trained["top1"]
    assert card["input"]["shape"] == ["batch", 1, 16, 16] and card["preprocess"]["colour"] == "L"
    assert card["preprocess"]["classes"] == [str(i) for i in range(10)]
    assert card["source"] == (folder.parent / "train").resolve().name
    assert facts["added_biases"] == []
    assert {row["layer"] for row in facts["weights"]} > {"features.0"}
    page = (folder / "MODEL_CARD.md").read_text()
    for name in ("model.pt2", "model.onnx", "model.int8.onnx"):
        assert f"| `{name}` |" in page
