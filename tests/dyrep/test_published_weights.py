"""Test that published weights, once loaded, give the function of the published network.

The networks in this file were written from the layouts: the names of the weights and what each part
computes.
"""

import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dyrep
from dyrep.proof import relative_error
from tests.dyrep.drawn import randomise


def conv_norm(inputs, outputs, size, bias=False, **options):
    conv = nn.Conv2d(inputs, outputs, size, bias=bias, **options)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))


class Bordered(nn.Module):
    """A batch norm that pads its output with what it computes for zero."""

    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        n, c, h, w = x.shape
        padded = self.bn(x.new_zeros(n, c, h + 2, w + 2))
        padded[:, :, 1:-1, 1:-1] = self.bn(x)
        return padded


class FromIdentity(nn.Conv2d):
    """A 1x1 conv whose weight is added to the identity."""

    def forward(self, x):
        channels, per_group = self.weight.shape[:2]
        kernel = self.weight.clone()
        for channel in range(channels):
            kernel[channel, channel % per_group] += 1
        return F.conv2d(x, kernel, groups=self.groups)


class Block(nn.Module):
    """A published block of DBB, DyRep or RepVGG, in its form for training."""

    def __init__(self, kind, inputs, outputs, stride=1, groups=1, nested=False, bias=False):
        super().__init__()
        common = {"stride": stride, "groups": groups}
        kxk, one, average = {
            "dbb": ("dbb_origin", "dbb_1x1", "dbb_avg"),
            "dyrep": ("dbb_kxk", "dbb_1x1", "dbb_1x1_avg"),
            "repvgg": ("rbr_dense", "rbr_1x1", None),
        }[kind]
        parts = {
            kxk: conv_norm(inputs, outputs, 3, kind == "dyrep" and not nested, padding=1, **common),
            one: conv_norm(inputs, outputs, 1, **common),
        }
        if nested:
            parts[kxk].conv = Block(kind, inputs, outputs, stride, groups)
        if average:
            first = FromIdentity if kind == "dbb" else nn.Conv2d
            parts[average] = nn.Sequential()
            if groups < outputs:
                parts[average].conv = nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)
                parts[average].bn = Bordered(outputs)
            parts[average].avg = nn.AvgPool2d(3, stride, 0 if groups < outputs else 1)
            parts[average].avgbn = nn.BatchNorm2d(outputs)
            chain = parts["dbb_1x1_kxk"] = nn.Sequential()
            name = "idconv1" if kind == "dbb" else "conv1"
            inside = inputs if groups < outputs else 2 * inputs
            if inside != inputs:
                name, first = "conv1", nn.Conv2d
            chain.add_module(name, first(inputs, inside, 1, groups=groups, bias=False))
            chain.bn1 = Bordered(inside)
            chain.conv2 = nn.Conv2d(inside, outputs, 3, bias=False, **common)
            chain.bn2 = nn.BatchNorm2d(outputs)
        if kind == "dyrep":
            parts["dbb_1xk"] = conv_norm(inputs, outputs, (1, 3), padding=(0, 1), **common)
            parts["dbb_kx1"] = conv_norm(inputs, outputs, (3, 1), padding=(1, 0), **common)
        if kind != "dbb" and inputs == outputs and stride == 1:
            parts["dbb_id" if kind == "dyrep" else "rbr_identity"] = nn.BatchNorm2d(outputs)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return sum(part(x) for part in self.children())


def pair(kind, norm, **options):
    """Return a published network with random statistics, and a plain one with the same paths."""
    torch.manual_seed(0)

    def build(first, second):
        return nn.Sequential(
            first, *([nn.BatchNorm2d(8)] if norm == "own" else [nn.Identity()]), nn.ReLU(), second
        )

    published = build(Block(kind, 4, 8, 2, 2), Block(kind, 8, 8, **options))
    randomise(published)
    plain = build(
        nn.Conv2d(4, 8, 3, 2, 1, groups=2, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
    )
    if norm == "absorbed":
        plain[1] = nn.BatchNorm2d(8)
    return published.double().eval(), plain.double().eval()


@pytest.mark.parametrize("norm", ["own", "absorbed", "none"])
@pytest.mark.parametrize("kind", ["dbb", "dyrep", "dyrep nested", "repvgg"])
def test_the_function_is_that_of_the_published_network(kind, norm):
    kind, _, nested = kind.partition(" ")
    published, plain = pair(kind, norm, nested=bool(nested))
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    state = {f"module.{key}": value for key, value in published.state_dict().items()}
    dyrep.load_published(plain, {"state_dict": state, "epoch": 3})
    assert relative_error(published(x), plain(x)) < 1e-12
    assert relative_error(published(x), dyrep.fuse(plain, inputs=x)(x)) < 1e-12
    assert len(dyrep.block.blocks(plain)) == 2 + bool(nested)


def test_twice_the_channels_inside_a_depthwise_conv_are_found_in_a_checkpoint():
    torch.manual_seed(0)
    published = nn.Sequential(Block("dbb", 4, 4, groups=4), nn.ReLU()).double()
    randomise(published)
    plain = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.ReLU()).double()
    dyrep.load_published(plain, published.state_dict())
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    assert relative_error(published.eval()(x), plain.eval()(x)) < 1e-12
    assert dyrep.structure(plain)["blocks"][0]["widen"] == 2


WRONG = {
    "fused": lambda s: {"0.dbb_reparam.weight": torch.zeros(8, 2, 3, 3)},
    "a part of a block of OREPA": lambda s: {"0.weight_orepa_origin": torch.zeros(8, 2, 3, 3)},
    "OREPA without a conv": lambda s: {"1.weight_orepa_origin": torch.zeros(8, 2, 3, 3)},
    "empty": lambda s: {},
    "no conv": lambda s: {**s, "2.dbb_origin.conv.weight": torch.zeros(8, 8, 3, 3)},
    "unknown path": lambda s: {**s, "9.dbb_1x1.conv.weight": torch.zeros(8, 8, 1, 1)},
    "another shape": lambda s: {**s, "3.dbb_1x1_kxk.conv2.weight": torch.zeros(8, 16, 3, 3)},
    "a key more": lambda s: {**s, "head.weight": torch.zeros(8)},
    "a key less": lambda s: {k: v for k, v in s.items() if k != "3.dbb_avg.conv.weight"},
    "unfit": lambda s: {**s, "0.dbb_id.weight": torch.zeros(8)},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(kind):
    published, plain = pair("dbb", "absorbed")
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    with pytest.raises(ValueError, match=r"checkpoint|cannot have"):
        dyrep.load_published(plain, WRONG[kind](published.state_dict()))
    after = plain.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


class Orepa(nn.Module):
    """A block of OREPA in its form for training, with the published keys and function."""

    def __init__(self, inputs, outputs, stride=1, groups=1):
        super().__init__()
        shapes = {
            "weight_orepa_origin": (outputs, inputs // groups, 3, 3),
            "weight_orepa_avg_conv": (outputs, inputs // groups, 1, 1),
            "weight_orepa_pfir_conv": (outputs, inputs // groups, 1, 1),
            "weight_orepa_1x1": (outputs, inputs // groups, 1, 1),
            "weight_orepa_1x1_kxk_idconv1": (inputs, inputs // groups, 1, 1),
            "weight_orepa_1x1_kxk_conv2": (outputs, inputs // groups, 3, 3),
            "weight_orepa_gconv_dw": (8 * inputs, 1, 3, 3),
            "weight_orepa_gconv_pw": (outputs, 8 * inputs // groups, 1, 1),
            "vector": (6, outputs),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.register_buffer("weight_orepa_avg_avg", torch.full((3, 3), 1 / 9))
        self.register_buffer("weight_orepa_prior", torch.tensor([
            [[self.wave(i, outputs / 2, h, w) for w in range(3)] for h in range(3)]
            for i in range(outputs)
        ]))  # fmt: skip
        eye = torch.eye(inputs // groups).repeat(groups, 1)[:, :, None, None]
        self.register_buffer("id_tensor", eye)
        self.bn, self.stride, self.groups = nn.BatchNorm2d(outputs), stride, groups

    @staticmethod
    def wave(channel, half, h, w):
        if channel < half:
            return math.cos(math.pi * (h + 0.5) * (channel + 1) / 3)
        return math.cos(math.pi * (w + 0.5) * (channel + 1 - half) / 3)

    def forward(self, x):
        """Return the norm of the sum of all branches, each channel times its strength."""
        g, s = self.groups, self.stride
        conv = nn.functional.conv2d
        inside = conv(x, self.weight_orepa_1x1_kxk_idconv1 + self.id_tensor, groups=g)
        pooled = self.weight_orepa_avg_conv * self.weight_orepa_avg_avg
        waves = self.weight_orepa_pfir_conv * self.weight_orepa_prior[:, None]
        wide = conv(x, self.weight_orepa_gconv_dw, None, s, 1, groups=x.shape[1])
        outputs = len(self.weight_orepa_origin)  # the published 1x1 interleaves outputs by group
        rows = torch.arange(outputs).view(-1, g).t().flatten()
        found = [
            conv(x, self.weight_orepa_origin, None, s, 1, groups=g),
            conv(x, pooled, None, s, 1, groups=g),
            conv(x, waves, None, s, 1, groups=g),
            conv(inside, self.weight_orepa_1x1_kxk_conv2, None, s, 1, groups=g),
            conv(x, self.weight_orepa_1x1, None, s, 0, groups=g),
            conv(wide, self.weight_orepa_gconv_pw[rows], groups=g),
        ]
        strengths = self.vector[:, None, :, None, None]
        return self.bn((torch.stack(found) * strengths).sum(0))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_function_is_that_of_the_published_orepa(groups):
    torch.manual_seed(0)
    published = nn.Sequential(
        Orepa(4, 6, 2, groups), nn.Identity(), nn.ReLU(), Orepa(6, 6, 1, groups), nn.Identity()
    )
    randomise(published)
    published = published.double().eval()
    plain = nn.Sequential(
        nn.Conv2d(4, 6, 3, 2, 1, groups=groups, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(6),
    ).double().eval()  # fmt: skip
    dyrep.load_published(plain, published.state_dict())
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    assert relative_error(published(x), plain(x)) < 1e-6  # the published prior is float32
    assert relative_error(plain(x), dyrep.fuse(plain, inputs=x)(x)) < 1e-12
    assert plain[0].names == list(dyrep.OREPA_BRANCHES)


def test_the_frequency_prior_is_that_of_orepa():
    conv = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False))
    dyrep.expand(conv, branches=dyrep.OREPA_BRANCHES, form="linear")
    branches = conv[0].branches
    assert torch.allclose(branches["1x1_prior"].prior, Orepa(4, 6).weight_orepa_prior, atol=1e-6)
