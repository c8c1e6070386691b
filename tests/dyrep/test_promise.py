"""Test the predicted gain of each branch, and that adding a branch keeps the function."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dyrep
from dyrep import expansion, linear_branches, promise
from dyrep.block import fitting
from dyrep.geometry import Geometry
from dyrep.proof import relative_error
from tests.dyrep.drawn import convs
from tests.dyrep.networks import network

pytestmark = pytest.mark.long

OTHERS = [name for name in dyrep.ALL_BRANCHES if name != "kxk"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=15, deadline=None)
@given(convs(), st.integers(0, 2**16))
def test_the_gain_is_the_decrease_of_the_loss_by_a_step_on_the_branch(conv, seed):
    """A step on a branch lowers the loss by the predicted gain.

    The loss is <G, W>. The part of the kernels is compared exactly, that of the strengths on
    average.
    """
    conv = conv.double()
    gradient = torch.randn(conv.weight.shape, generator=seeded(seed), dtype=torch.float64)
    names, geometry = fitting(conv, OTHERS), Geometry.of(conv)
    for name in names:
        slow, fast = (
            promise.gains(gradient, gradient, geometry, [name], s).item() for s in (0.0, 0.7)
        )
        block = expansion.add(nn.Sequential(copy.deepcopy(conv)), "0", [name], seeded(seed), 0.7)
        branch = block.branches[name]
        (branch.kernel(torch.float64) * gradient).sum().backward()
        first = getattr(branch, "reduce", None) if name == "1x1_kxk" else None  # not in the gain
        moved = [
            p
            for p in branch.parameters()
            if p.ndim > 1 and (first is None or p is not first.weight)
        ]
        assert sum(p.grad.square().sum().item() for p in moved) == pytest.approx(fast - slow)
        learned = [strength_gain(branch, gradient, draw) for draw in range(60)]
        fixed = not moved
        expected = pytest.approx(slow) if fixed else pytest.approx(slow, rel=0.8)
        assert sum(learned) / len(learned) == expected


@settings(max_examples=15, deadline=None)
@given(convs(), st.integers(0, 2**16))
def test_the_gain_is_linear_in_the_step_and_in_the_gradient(conv, seed):
    shape, draw = (2, *conv.weight.shape), seeded(seed)
    moved, gradient = torch.randn(shape, generator=draw, dtype=torch.float64)
    names, geometry = fitting(conv, OTHERS), Geometry.of(conv)
    if names:
        of = [
            promise.gains(x, x, geometry, names, 0.5) for x in (moved + gradient, moved - gradient)
        ]
        both = promise.gains(moved, gradient, geometry, names, 0.5)
        torch.testing.assert_close(both, (of[0] - of[1]) / 4)
        torch.testing.assert_close(both, promise.gains(gradient, moved, geometry, names, 0.5))


def strength_gain(branch, gradient, seed):
    """Draw the kernels of a branch again; return the squared gradient of its strengths."""
    linear_branches.draw(branch, seeded(seed))
    branch.scale.grad = None
    (branch.kernel(torch.float64) * gradient).sum().backward()
    return branch.scale.grad.square().sum().item()


@settings(max_examples=20, deadline=None)
@given(convs(), st.integers(0, 2**16))
def test_adding_branches_one_by_one_keeps_the_function(conv, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)).double()
    x = torch.randn(3, conv.in_channels, 17, 15, dtype=torch.float64)
    names = fitting(conv, OTHERS)
    before = [copy.deepcopy(model).train(mode)(x) for mode in (False, True)]
    for name in reversed(names):
        expansion.add(model, "0", [name], seeded(seed), 0.5)
        after = [copy.deepcopy(model).train(mode)(x) for mode in (False, True)]
        assert all(relative_error(a, b) < 1e-12 for a, b in zip(before, after, strict=True))
    if names:
        assert model[0].names == ["kxk", *names]
        fresh = nn.Sequential(copy.deepcopy(conv), nn.BatchNorm2d(conv.out_channels)).double()
        dyrep.apply_structure(fresh, dyrep.structure(model))
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_a_branch_that_a_block_has_is_not_added_again():
    model = network()
    expansion.add(model, "0", ["1x1"], seeded(), 0.5)
    with pytest.raises(ValueError, match="has 1x1 already"):
        expansion.add(model, "0", ["1x1"], seeded(), 0.5)
