"""Test `model.freeze`: globs choose the parameters and batch norms that do not change."""

import pytest
import torch
from torch import nn

import dyrep
from pipeline.display.errors import UserError
from pipeline.networks import pretrained
from tests.pipeline.networks.made import model, network


def frozen(*globs):
    made = network()
    return made, pretrained.begin(made, model().model_copy(update={"freeze": list(globs)}), 3)


@pytest.mark.parametrize(
    ("globs", "names", "norms"),
    [
        (["features.0"], {"features.0.weight", "features.0.bias"}, 0),
        (["features.[01]"], {f"features.{n}.{p}" for n in (0, 1) for p in ("weight", "bias")}, 1),
        (["*.bias"], {f"{n}.bias" for n in ("features.0", "features.1", "features.4", "features.5",
                                            "classifier")}, 0),
        (["features"], {f"features.{n}.{p}" for n in (0, 1, 4, 5) for p in ("weight", "bias")}, 2),
    ],
)  # fmt: skip
def test_parameters_and_norms_that_globs_match_do_not_change(globs, names, norms):
    made, (lines,) = frozen(*globs)
    assert {n for n, p in made.named_parameters() if not p.requires_grad} == names
    assert lines.startswith(f"frozen: {len(names)} of 10 parameters")
    before = {name: value.clone() for name, value in made.named_buffers()}
    made.train()(torch.randn(4, 3, 8, 8))
    kept = [n for n, value in made.named_buffers() if "mean" in n and torch.equal(value, before[n])]
    assert len(kept) == norms == sum(isinstance(m, nn.BatchNorm2d) and not m.training
                                     for m in made.modules())  # fmt: skip


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("feature.0", "matches no parameter and no module; did you mean 'model.freeze=features.0'"),
        ("*", "leaves nothing to train"),
    ],
)
def test_globs_that_match_nothing_or_everything_are_refused(glob, message):
    with pytest.raises(UserError, match=message.replace("*", ".")):
        frozen(glob)


def test_a_frozen_convolution_does_not_grow():
    made, _ = frozen("features.[01]")
    assert dyrep.expand(made, form="linear").left == {"features.0": "frozen"}
