"""Test kernels that start with the identity in them."""

import pytest
import torch
from torch import nn

import dyrep
from tests.dyrep.networks import network

FITTING = [{}, {"groups": 2}, {"groups": 4}, {"dilation": 2, "padding": 2}]
OTHERS = [{"stride": 2}, {"out_channels": 8}, {"kernel_size": 1, "padding": 0}]
COMMON = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1}


@pytest.mark.parametrize("options", FITTING)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_conv_adds_its_input_to_what_it_computed(options, strength):
    conv = nn.Conv2d(**{**COMMON, **options}).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    before = conv(x)
    assert dyrep.identity_start(nn.Sequential(conv), strength) == ["0"]
    torch.testing.assert_close(conv(x), before + strength * x)


@pytest.mark.parametrize("options", OTHERS)
def test_a_conv_that_cannot_add_its_input_keeps_its_kernel(options):
    conv = nn.Conv2d(**{**COMMON, **options})
    kernel = conv.weight.detach().clone()
    assert dyrep.identity_start(nn.Sequential(conv)) == []
    assert torch.equal(conv.weight, kernel)


def test_a_network_that_has_blocks_is_refused():
    model = network()
    dyrep.expand(model, form="linear")
    with pytest.raises(ValueError, match="fresh network"):
        dyrep.identity_start(model)


def test_a_shared_conv_is_left_alone():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    kernel = conv.weight.detach().clone()
    assert dyrep.identity_start(nn.Sequential(conv, nn.ReLU(), conv)) == []
    assert torch.equal(conv.weight, kernel)
