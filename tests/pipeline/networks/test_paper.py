"""Test that the networks of `experiment=` have the published parameters, FLOPs and branches."""

import json

import pytest
import torch
from torch import nn
from torchvision.models import get_model_weights

from dyrep.block import blocks
from dyrep.cost import cost
from pipeline.config import Config
from pipeline.networks import architectures
from pipeline.training import growable
from pipeline.training.growth import prepare
from tests.dyrep.drawn import randomise
from tests.runs import composed

pytestmark = pytest.mark.long

# Parameters and FLOPs, where a multiply-add counts as 2. Those of VGG-16 and MobileNetV1 were counted
# on the network that the published code builds (github.com/hunto/image_classification_sota,
# configs/models/VGG/ and lib/models/mobilenet_v1.py). Those of ResNets come from torchvision's
# description of its weights. Those of RepVGG are the millions of parameters and billions of
# multiply-adds in tables 4 and 5 of github.com/DingXiaoH/RepVGG.
COUNTED = {
    "cifar10_vgg16": (14_986_698, 626_927_616),
    "cifar100_vgg16": (15_032_868, 627_019_776),
    "imagenet_mobilenet_v1": (4_231_976, 1_137_480_704),
}
ROUNDED = {"imagenet_repvgg_a2": (25.49, 5.1), "imagenet_repvgg_b2g4": (55.77, 11.3),
           "imagenet_repvgg_b3": (110.96, 26.2)}  # fmt: skip
CLASSES = {"cifar10_vgg16": 10, "cifar100_vgg16": 100}


def configured(experiment, method="plain"):
    settings = composed(f"experiment={experiment}", f"method={method}", "data.root=/x", "name=x")
    return Config.model_validate(json.loads(settings))


def built(experiment, method="plain"):
    """Return the configuration, the network on the meta device, and an image for it."""
    config = configured(experiment, method)
    with torch.device("meta"):
        network = architectures.build(config.model, CLASSES.get(experiment, 1000))
        return config, network, torch.zeros(1, 3, *[config.data.image_size] * 2)


@pytest.mark.parametrize("experiment", COUNTED)
def test_vgg_and_mobilenet_are_what_the_published_code_builds(experiment):
    _, network, image = built(experiment)
    found = cost(network, image)
    assert (found.parameters, found.flops) == COUNTED[experiment]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_have_the_cost_that_torchvision_states(name):
    _, network, image = built(f"imagenet_{name}")
    found, published = cost(network, image), get_model_weights(name).IMAGENET1K_V1.meta
    assert found.parameters == published["num_params"]
    assert found.flops / 2e9 == pytest.approx(published["_ops"], abs=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("experiment", ROUNDED)
def test_a_shipped_repvgg_has_the_published_cost_and_a_training_one_that_of_timm(experiment):
    import timm

    config, network, image = built(experiment)
    parameters, billions = ROUNDED[experiment]
    normed = sum(m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    found = cost(network, image)  # each batch norm is folded into a bias
    assert (found.parameters - normed) // 10_000 / 100 == parameters  # the tables truncate
    assert found.flops / 2e9 == pytest.approx(billions, abs=0.05)
    with torch.device("meta"):
        theirs = timm.create_model(config.model.name)
        prepare(network, config.method, 0, (3, 224, 224), own_branches=config.model.own_branches)
    assert cost(network, image).parameters == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    "experiment", ["cifar10_vgg16", "imagenet_mobilenet_v1", "imagenet_resnet50"]
)
@pytest.mark.parametrize("method", ["dbb", "dyrep", "grow", "orepa"])
def test_each_method_can_change_every_convolution(experiment, method):
    config, network, _ = built(experiment, method)
    assert growable.left_alone(network, config.method) == {}


# names in timm's block, and in the blocks of dyrep
NAMES = {"conv_kxk.conv": "kxk.conv", "conv_kxk.bn": "kxk.norm", "conv_1x1.conv": "1x1.conv",
         "conv_1x1.bn": "1x1.norm", "identity": "identity.norm"}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("training", [True, False])
def test_the_own_branches_of_repvgg_compute_what_those_of_timm_do(training):
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("repvgg_a0", num_classes=4).double()
    randomise(theirs, 0.1)
    ours = architectures.from_timm("repvgg_a0", 4)
    prepare(ours, configured("imagenet_repvgg_a2").method, 0, (3, 32, 32), own_branches=True)
    state = {}
    for key, value in theirs.state_dict().items():
        for name, place in NAMES.items():
            key = key.replace(f".{name}.", f".conv.branches.{place}.")
        state[key] = value
    ours.double().load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))


@pytest.mark.long
def test_own_branches_begin_as_those_of_timm_and_take_the_form_of_the_method():
    for method, form in (("plain", "batchnorm"), ("dbb", "batchnorm"), ("grow", "linear")):
        torch.manual_seed(0)
        network = architectures.from_timm("repvgg_a0", 4)
        prepare(
            network,
            configured("imagenet_repvgg_a2", method).method,
            0,
            (3, 32, 32),
            own_branches=True,
        )
        own = [block for block in blocks(network).values() if block.own]
        assert len(own) == 22 and {block.form for block in own} == {form}
        if form == "batchnorm":
            gammas = torch.cat([block.branches["1x1"].norm.weight for block in own])
            assert gammas.mean().item() == pytest.approx(0.1, abs=0.01)
            assert gammas.std().item() == pytest.approx(0.1, abs=0.01)
