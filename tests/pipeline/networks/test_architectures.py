"""Test `networks.architectures`: each `model=` is a classifier, and wrong names are refused."""

import socket

import pytest
import torch

from pipeline.config.model import Timm, Torchvision
from pipeline.display.errors import UserError
from pipeline.networks import architectures
from pipeline.planning import compose, sweep
from pipeline.planning.conf import CONF

CHOICES = sorted({file.stem for file in (CONF / "model").glob("*.yaml")} - {"custom"})
NAMES = {"torchvision": "mobilenet_v2", "timm": "resnet10t"}  # for choices without a default name
BIG = ("vgg16", "resnet34", "resnet50", "repvgg_a2", "repvgg_b2g4", "repvgg_b3")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("building a network opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def settings(choice, *overrides):
    name = [f"model.name={NAMES[choice]}"] if choice in NAMES else []
    tree, *_ = sweep.single([f"model={choice}", *name, "name=x", *overrides])
    return compose.to_config(tree, {}, []).model


def build(choice, *overrides, device="cpu", size=64):
    """Return a network of ten classes in eval mode, and its scores of two images."""
    with torch.device(device), torch.no_grad():
        network = architectures.build(settings(choice, "data.image_size=64", *overrides), 10).eval()
        return network, network(torch.zeros(2, 3, size, size))


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_is_a_classifier(choice):
    _, scores = build(choice, device="meta" if choice in BIG else "cpu")
    assert scores.shape == (2, 10)


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("torchvision", "googlenet"),
        ("torchvision", "inception_v3"),
        ("torchvision", "vgg11_bn"),
        ("timm", "convnext_tiny"),
        ("timm", "inception_v3"),
    ],
)
def test_any_name_of_the_libraries_is_a_choice(choice, name):
    _, scores = build(choice, f"model.name={name}", device="meta", size=96)
    assert isinstance(scores, torch.Tensor)
    assert scores.shape == (2, 10)


@pytest.mark.parametrize(
    ("choice", "stem"),
    [("resnet18", "conv1"), ("resnet50", "conv1"), ("mobilenet_v1", "features.0")],
)
def test_the_small_stem_keeps_the_size_of_the_image(choice, stem):
    for small, stride in (("true", (1, 1)), ("false", (2, 2))):
        network, _ = build(choice, f"model.small_stem={small}", device="meta")
        assert network.get_submodule(stem).stride == stride


@pytest.mark.parametrize(("width", "parameters"), [(1.0, 4_231_976), (0.5, 1_331_592)])
def test_mobilenet_has_the_size_of_the_paper(width, parameters):
    network = architectures.mobilenet_v1(width, small_stem=False, classes=1000)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_repvgg_comes_without_its_branches():
    """The network has 22 layers of one 3x3 convolution each; `method=` adds the branches."""
    network, _ = build("repvgg_a2", device="meta")
    convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(3, 3)] * 22


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Timm(name="convnext_tinny", family="timm"),
            "timm; did you mean 'model.name=convnext_tiny'",
        ),
        (
            Timm(name="resnet10t.c3_in1k", family="timm"),
            "timm; write model.name=resnet10t model.pretrained=c3_in1k",
        ),
        (Timm(name="hf-hub:a/b", family="timm"), "is not a classifier of timm; there are 1,"),
        (Torchvision(name="resnet1", family="torchvision", small_stem=True), "=resnet18'"),
        (
            Torchvision(name="fcn_resnet50", family="torchvision", small_stem=False),
            "fcn_resnet50 is not a classifier of torchvision; did you mean 'model.name=",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_unknown_name_is_refused_with_the_nearest(model, message):
    with pytest.raises(UserError) as refused:
        architectures.build(model, 10)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 140


def test_only_resnets_of_torchvision_have_a_small_stem():
    assert settings("torchvision", "model.name=wide_resnet50_2", "model.small_stem=true")
    with pytest.raises(UserError, match="small_stem is for ResNets and mobilenet_v2 is none"):
        settings("torchvision", "model.small_stem=true")


def test_a_library_without_a_model_name_is_refused():
    tree, *_ = sweep.single(["model=timm", "name=x"])
    with pytest.raises(UserError, match="name is missing; give"):
        compose.to_config(tree, {}, [])
