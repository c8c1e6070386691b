"""Test that a block computes what its folded conv computes, for any conv and any branches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dyrep
from dyrep.block import RepBlock
from dyrep.proof import relative_error
from tests.dyrep.drawn import convs, randomise

pytestmark = pytest.mark.long


@settings(max_examples=300, deadline=None)
@given(convs(), st.integers(0, 2**16))
def test_any_conv_with_all_branches_it_can_take_folds_exactly(conv, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(conv)
    dyrep.expand(model, branches=dyrep.ALL_BRANCHES)
    block = model[0]
    randomise(block)
    x = torch.randn(2, conv.in_channels, 17, 15, dtype=torch.float64)
    model.eval()
    folded = block.fuse()
    assert relative_error(model(x), folded(x)) < 1e-10
    assert folded(x).shape == conv(x).shape


@pytest.mark.parametrize("branch", dyrep.ALL_BRANCHES)
def test_each_branch_alone_folds_exactly(branch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64))
    dyrep.expand(model, branches=[branch])
    assert set(model[0].names) == {"kxk", branch}
    randomise(model[0])
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    model.eval()
    assert relative_error(model(x), model[0].fuse()(x)) < 1e-12


def test_no_branch_has_a_kernel_of_zeros():
    """The folding tests would also pass if branches added nothing."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    dyrep.expand(model, branches=dyrep.ALL_BRANCHES)
    for name, branch in model[0].branches.items():
        kernel, _ = branch.equivalent()
        assert kernel.abs().max() > 1e-3, name


def test_a_conv_takes_only_the_branches_that_fit():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, dilation=2))
    dyrep.expand(model, branches=dyrep.ALL_BRANCHES)
    unfit = ("1x1_avg", "identity")
    assert model[0].names == [name for name in dyrep.ALL_BRANCHES if name not in unfit]


class Twice(nn.Module):
    """A network that holds one conv under two names."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Conv2d(3, 3, 3)


class Special(nn.Conv2d):
    """A subclass of Conv2d, which may compute something else."""


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Twice(), "shared"),
        (nn.Sequential(Special(3, 3, 3)), "subclass"),
        (nn.Sequential(nn.Conv2d(3, 3, 3).requires_grad_(False)), "frozen"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))), "subclass"),
    ],
)
def test_a_conv_that_cannot_be_replaced_is_left_with_the_reason(model, reason):
    done = dyrep.expand(model)
    assert not done.grown
    assert all(reason in text for text in done.left.values())
    assert done.left


def test_the_block_has_the_dtype_and_the_mode_of_the_conv():
    model = nn.Sequential(nn.Conv2d(4, 4, 3).to(torch.bfloat16)).eval()
    dyrep.expand(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())


def test_two_blocks_do_not_share_their_list_of_branches():
    """The published code disables a branch in all blocks if one block cannot take it."""
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    dyrep.expand(model, branches=dyrep.ALL_BRANCHES)
    assert "identity" not in model[0].names
    assert "identity" in model[1].names


def test_the_weight_of_the_conv_stays_the_same_parameter():
    conv = nn.Conv2d(4, 4, 3)
    model = nn.Sequential(conv)
    dyrep.expand(model)
    assert isinstance(model[0], RepBlock)
    assert model[0].kxk.conv.weight is conv.weight
