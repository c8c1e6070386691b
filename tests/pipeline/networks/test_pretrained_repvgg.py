"""Test the weights of a published RepVGG: its branches are folded, or become the network's own."""

import copy
import re

import pytest
import timm
import torch
from torch import nn

from dyrep.block import blocks
from dyrep.proof import relative_error
from pipeline.config.model import DyRep
from pipeline.display.errors import UserError
from pipeline.networks import architectures, pretrained
from pipeline.training.growth import prepare
from tests.dyrep.drawn import randomise
from tests.pipeline.networks.made import model, stored


@pytest.fixture(scope="module")
def trained_repvgg(tmp_path_factory):
    """Return a RepVGG of timm with branches and random values, and the file of its weights."""
    theirs = timm.create_model("repvgg_a0", num_classes=3)
    randomise(theirs, 0.02)
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    return theirs.eval(), stored(tmp_path_factory.mktemp("repvgg"), state)


@pytest.mark.long
def test_the_branches_of_a_published_repvgg_are_folded(trained_repvgg):
    theirs, path = trained_repvgg
    asked = model("timm", "repvgg_a0", pretrained=str(path))
    ours = architectures.build(asked, 3)
    lines = pretrained.begin(ours, asked, 3)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(theirs(images), ours.eval()(images)) < 1e-5
    assert "branches of these RepVGG weights were folded into 3x3 convolutions" in lines[0]
    # no note about a batch norm without effect
    assert "with their class head" in lines[1] and len(lines) == 2


@pytest.mark.long
@pytest.mark.parametrize("form", ["batchnorm", "linear"])
def test_the_branches_of_a_published_repvgg_become_its_own(trained_repvgg, form):
    theirs, path = copy.deepcopy(trained_repvgg[0]), trained_repvgg[1]
    asked = model("timm", "repvgg_a0", pretrained=str(path), own_branches=True)
    ours = architectures.build(asked, 3)
    lines = pretrained.begin(ours, asked, 3)
    assert "branches of these RepVGG weights are those of the network" in lines[0]
    method = DyRep.model_construct(kind="dyrep", start="drawn", form=form, branches=["1x1"])
    prepare(ours, method, 0, (3, 32, 32), own_branches=True)
    pretrained.fill_branches(ours, asked)
    assert all(block.form == form and block.own for block in blocks(ours).values())
    images = torch.randn(2, 3, 32, 32)
    for training in (False, True) if form == "batchnorm" else (False,):
        with torch.no_grad():
            given, found = theirs.train(training)(images), ours.train(training)(images)
        assert relative_error(given, found) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("own", [False, True])
def test_a_repvgg_for_grey_images_gives_them_the_same_scores(tmp_path, own):
    theirs = timm.create_model("repvgg_a0", num_classes=3, in_chans=1)
    randomise(theirs, 0.02)
    path = stored(tmp_path, theirs.state_dict())
    asked = model("timm", "repvgg_a0", pretrained=str(path), own_branches=own)
    ours = architectures.build(asked, 3)
    lines = pretrained.begin(ours, asked, 3)
    assert "are for grey images" in lines[-1]
    if own:
        method = DyRep.model_construct(
            kind="dyrep", start="drawn", form="batchnorm", branches=["1x1"]
        )
        prepare(ours, method, 0, (3, 32, 32), own_branches=True)
        pretrained.fill_branches(ours, asked)
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        given, found = theirs.eval()(grey), ours.eval()(grey.expand(-1, 3, -1, -1))
    assert relative_error(given, found) < 1e-5


def test_weights_without_branches_are_refused_where_the_network_has_its_own(tmp_path):
    asked = model(
        "timm",
        "repvgg_a0",
        pretrained=str(stored(tmp_path, {"w": torch.ones(1)})),
        own_branches=True,
    )
    with pytest.raises(UserError, match=r"has no branches .* leave model.own_branches out"):
        pretrained.begin(nn.Module(), asked, 3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "name", "message"),
    [("timm", "repvgg_a1", "stem.conv_kxk.conv.weight is 48x3x3x3 there and 64x3x3x3 here"),
     ("timm", "test_resnet", "choose its name with model=timm model.name=")],
)  # fmt: skip
def test_branches_of_another_network_are_refused(trained_repvgg, family, name, message):
    asked = model(family, name, pretrained=str(trained_repvgg[1]))
    with pytest.raises(UserError, match=re.escape(message)):
        pretrained.begin(architectures.build(asked, 3), asked, 3)
