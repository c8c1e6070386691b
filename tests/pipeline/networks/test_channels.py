"""Test networks for images of one channel, and weights that were trained for three."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from dyrep.block import blocks
from dyrep.proof import relative_error
from pipeline.config.model import DyRep
from pipeline.custom import code
from pipeline.networks import architectures, pretrained
from pipeline.training.growth import prepare
from tests.dyrep.drawn import randomise
from tests.pipeline.networks.made import model, stored

OWN = {
    "vgg": {"widths": [[4], [6]]},
    "mobilenet": {"family": "mobilenet_v1", "name": "m", "width": 0.1, "small_stem": True},
    "resnet18": {"family": "torchvision", "name": "resnet18", "small_stem": False},
    "small stem": {"family": "torchvision", "name": "resnet18", "small_stem": True},
    "vit": {"family": "torchvision", "name": "vit_b_16", "small_stem": False},
    "timm": {"family": "timm", "name": "resnet10t"},
    "repvgg": {"family": "timm", "name": "repvgg_a0"},
    "no convolution larger than 1x1": {"family": "timm", "name": "mixer_s32_224"},
}
SIZES = {"vit": 224, "no convolution larger than 1x1": 224}


def first(network):
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.long
@pytest.mark.parametrize("name", OWN)
def test_each_kind_of_network_takes_images_of_one_channel(name):
    asked, size = model(**OWN[name]), SIZES.get(name, 32)
    torch.manual_seed(0)
    network = architectures.build(asked, 5, 1)
    torch.manual_seed(0)
    usual = architectures.build(asked, 5)
    assert network(torch.randn(2, 1, size, size)).shape == (2, 5)
    assert (first(network).in_channels, first(usual).in_channels) == (1, 3)
    own, other = network.state_dict(), usual.state_dict()
    (stem,) = (key for key in own if own[key].shape != other[key].shape)
    assert own[stem].shape == other[stem][:, :1].shape
    assert architectures.head(asked, 5, 1) == architectures.head(asked, 5)


@pytest.mark.zoo
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_the_stem_of_each_classifier_of_torchvision_is_its_first_convolution(name):
    build = architectures.from_torchvision
    try:
        with torch.device("meta"):
            network = build(name, False, 10, 1)
    except (NotImplementedError, RuntimeError):  # the constructor computes with values
        network = build(name, False, 10, 1)
    where = next(network.parameters()).device
    size = 299 if name == "inception_v3" else 224
    assert network.eval()(torch.zeros(1, 1, size, size, device=where)).shape == (1, 10)


@pytest.mark.parametrize(
    ("takes", "got"),
    [("num_classes, in_channels", 1), ("num_classes, in_chans=3", 1), ("num_classes, **more", 3)],
)
def test_a_function_of_the_user_gets_the_channels_if_it_has_the_argument(
    tmp_path, monkeypatch, takes, got
):
    given = "in_channels" if "in_channels" in takes else "in_chans"
    count = given if given in takes else "3 + len(more)"
    (tmp_path / "grey.py").write_text(
        "from torch import nn\n"
        f"def net({takes}):\n"
        f"    return nn.Sequential(nn.Conv2d({count}, 4, 3), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(code.sys.modules, "grey", raising=False)
    asked = model("custom", "custom", target="grey:net", args=None, code=None)
    assert first(architectures.build(asked, 2, 1)).in_channels == got
    assert first(architectures.build(asked, 2, 3)).in_channels == 3


# -- weights for the other number of channels ------------------------------------------------------


def of(channels, asked, seed):
    torch.manual_seed(seed)
    return architectures.build(asked, 3, channels).eval()


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg", "mobilenet", "small stem", "timm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_converted_weights_give_grey_images_the_same_scores(tmp_path, name, channels):
    asked = model(**OWN[name])
    source = of(4 - channels, asked, 0)
    randomise(source, 0.02)
    made = of(channels, asked, 1)
    path = str(stored(tmp_path, source.state_dict()))
    lines = pretrained.begin(
        made, asked.model_copy(update={"pretrained": path}), 3, channels=channels
    )
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        given, found = (
            network.eval()(grey.expand(-1, count, -1, -1))
            for network, count in ((source, 4 - channels), (made, channels))
        )
    assert relative_error(given, found) < 1e-5
    kernels, what = {1: ("sum", "RGB"), 3: ("third", "grey images")}[channels]
    assert f"are for {what};" in lines[-1] and kernels in lines[-1]


@pytest.mark.long
@pytest.mark.parametrize("own", [False, True])
def test_a_published_repvgg_for_rgb_begins_a_network_for_grey_images(tmp_path, own):
    theirs = timm.create_model("repvgg_a0", num_classes=3)
    randomise(theirs, 0.02)
    asked = model(
        "timm", "repvgg_a0", pretrained=str(stored(tmp_path, theirs.state_dict())), own_branches=own
    )
    ours = architectures.build(asked, 3, 1)
    lines = pretrained.begin(ours, asked, 3, channels=1)
    assert "are for RGB" in lines[-1]
    if own:
        method = DyRep.model_construct(
            kind="dyrep", start="drawn", form="batchnorm", branches=["1x1"]
        )
        prepare(ours, method, 0, (1, 32, 32), own_branches=True)
        pretrained.fill_branches(ours, asked, 1)
        assert all(block.own for block in blocks(ours).values())
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        given, found = theirs.eval()(grey.expand(-1, 3, -1, -1)), ours.eval()(grey)
    assert relative_error(given, found) < 1e-5
