"""Test that values recomputed in backward give the gradients that kept values would give."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import dyrep
from dyrep import branches
from dyrep.block import place_block
from dyrep.proof import relative_error
from tests.dyrep.drawn import randomise


def block(channels=6, nested=False, training=True, **options):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 8, 3, padding=1, **options).double()
    model = nn.Sequential(conv, nn.BatchNorm2d(8).double())
    place_block(model, "0", dyrep.ALL_BRANCHES)
    if nested:
        for inner in ("kxk", "1x1_kxk"):
            place_block(model, f"0.branches.{inner}.conv", dyrep.ALL_BRANCHES)
    randomise(model, spread=0.5)
    return model.train(training), torch.randn(4, channels, 9, 9, dtype=torch.float64)


def gradients(model, x, between=None):
    """Return the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    output = model(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    if between:
        between()
    loss = (output * weights).sum()
    return torch.autograd.grad(loss, [x, *model.parameters()])


CASES = [
    {},
    {"stride": 2},
    {"groups": 2},
    {"channels": 200},  # so wide that 1x1 convs are kept
    {"nested": True},
    {"training": False},
    {"padding_mode": "reflect"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradients_are_those_of_a_block_that_keeps_everything(case, monkeypatch):
    model, x = block(**case)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    ours = gradients(model, x)
    after = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    monkeypatch.setattr(branches, "rebuilt", lambda value, build: nullcontext())
    for expected, actual in zip(gradients(model, x), ours, strict=True):
        assert relative_error(expected, actual) < 1e-10
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, after[key])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_forward_counts_not_that_of_the_backward(training):
    model, x = block(training=training)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = gradients(model, x)
    model.load_state_dict(state)
    actual = gradients(model, x, between=lambda: model.train(not training))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("path", ["0.branches.1x1.conv", "0.branches.1x1_kxk.inner_norm"])
def test_weights_changed_between_forward_and_backward_are_refused(path):
    model, x = block()

    @torch.no_grad()
    def change():
        model.get_submodule(path).weight.mul_(2)

    with pytest.raises(RuntimeError, match=r"changed|modified"):
        gradients(model, x, between=change)


def test_frozen_norms_have_exact_gradients():
    model, x = block(training=False)
    conv = model[0].branches["1x1_kxk"]
    parameters = [conv.inner_norm.weight, conv.inner_norm.bias, conv.reduce.weight]
    for parameter in parameters:
        (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), [parameter])
        step = torch.randn_like(parameter) * 1e-6
        with torch.no_grad():
            before = model(x)[:, 0].sum()
            parameter.add_(step)
            change = model(x)[:, 0].sum() - before
            parameter.sub_(step)
        assert (gradient * step).sum().item() == pytest.approx(change.item(), rel=1e-3, abs=1e-9)


def test_gradients_under_autocast_are_close_to_those_without():
    model, x = block(channels=16)
    model, x = model.float(), x.float()
    exact = gradients(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradients(model, x)
    names = ["input", *dict(model.named_parameters())]
    for name, expected, actual in zip(names, exact, rough, strict=True):
        if "conv.weight" in name or name == "input":
            similar = torch.cosine_similarity(expected.flatten(), actual.flatten().float(), 0)
            assert similar > 0.98, name


def test_a_backward_may_be_repeated():
    model, x = block()
    loss = model(x).pow(2).sum()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
