"""Test that growing and cutting keep the function: exactly in eval mode, nearly in train mode."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dyrep
from dyrep import calibration, expansion, pruning
from dyrep.proof import relative_error
from tests.dyrep.drawn import convs

pytestmark = pytest.mark.long


def network(norm=True):
    """Return two float64 convs, each with a batch norm behind it if `norm`."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=not norm)]
    layers += [nn.BatchNorm2d(8)] if norm else []
    layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else [])]
    return nn.Sequential(*layers).double()


def images(seed, count=16):
    generator = torch.Generator().manual_seed(seed)
    return 1 + 2 * torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=generator)


def grow(model, path, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batches = [images(s) for s in range(8)]
    return expansion.grow(model, path, dyrep.ALL_BRANCHES, batches, generator)


def train_mode(model, x):
    with calibration.batch_statistics(model), torch.no_grad():
        return model(x)


def last_conv(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)][-1]


@pytest.mark.parametrize("norm", [True, False])
def test_growing_keeps_the_eval_function(norm):
    model = network(norm).eval()
    x = images(100)
    before = model(x)
    grow(model, last_conv(model))
    assert relative_error(before, model(x)) < 1e-10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("norm", [True, False])
def test_growing_keeps_the_train_function(norm, seed):
    """With 4,096 positions per channel, growing changes the output by less than 0.001.

    The published code changes it by 0.05, and by 0.8 without a batch norm behind the conv.
    """
    model = network(norm)
    x = images(100 + seed)
    before = train_mode(model, x)
    grow(model, last_conv(model), seed)
    assert relative_error(before, train_mode(model, x)) < 1e-3


def test_growth_does_not_make_a_network_without_batch_norm_depend_on_the_batch():
    """Each image has one brightness, so the statistics of four images say little of all."""
    model = network(norm=False)
    brightness = torch.linspace(-3, 3, 16, dtype=torch.float64)[:, None, None, None]
    x = images(100) * 0.1 + brightness
    generator = torch.Generator().manual_seed(0)
    before = train_mode(model, x[:4])
    expansion.grow(model, "2", dyrep.ALL_BRANCHES, [x], generator)
    assert relative_error(before, train_mode(model, x[:4])) < 2e-2
    assert model.train()[2].kxk.norm.training is False
    fresh = network(norm=False)
    dyrep.apply_structure(fresh, dyrep.structure(model))
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(train_mode(model, x), train_mode(fresh, x))


@settings(max_examples=60, deadline=None)
@given(convs(), st.integers(0, 2**16))
def test_growing_any_conv_keeps_the_eval_function(conv, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(conv)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, conv.in_channels, 17, 15, dtype=torch.float64)
    before = model.eval()(x)
    expansion.grow(model, "0", dyrep.ALL_BRANCHES, [x], generator)
    assert relative_error(before, model.eval()(x)) < 1e-10
    weak = [name for name in model[0].names if name in ("1x1", "1x1_avg")]
    pruning.cut(model, "0", weak, [x])
    assert relative_error(before, model.eval()(x)) < 1e-10


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grown_conv_keeps_dtype_and_memory_layout(dtype, layout):
    """The published code creates float32, contiguous branches on the default CUDA device."""
    model = network().to(dtype).to(memory_format=layout)
    x = images(0).to(dtype).to(memory_format=layout)
    before = model.eval()(x).float()
    expansion.grow(model, "3", dyrep.ALL_BRANCHES, [x], torch.Generator().manual_seed(0))
    assert {p.dtype for p in model.parameters()} == {dtype}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=layout)
    after = model.eval()(x)
    assert after.is_contiguous(memory_format=layout)
    assert relative_error(before, after.float()) < (1e-5 if dtype is torch.float32 else 0.05)


def test_growing_leaves_every_other_state_alone():
    model = network()
    model.train()
    model[1].momentum = 0.37
    others = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("3.")}
    grow(model, "3")
    assert model[1].momentum == 0.37
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in others.items())


@pytest.mark.parametrize("inner", ["3.branches.kxk.conv", "3.branches.1x1_kxk.conv"])
def test_a_grown_conv_grows_again(inner):
    model = network().eval()
    x = images(100)
    grow(model, "3")
    before_eval, before_train = model(x), train_mode(model, x)
    grow(model, inner, seed=1)
    assert relative_error(before_eval, model(x)) < 1e-10
    assert relative_error(before_train, train_mode(model, x)) < 5e-3  # statistics of two norms vary
    assert relative_error(model(x), dyrep.fuse(model, inputs=x)(x)) < 1e-10


def trained(model, steps=5):
    """Train the model for a few steps, so that its branches contribute; return it in eval mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for step in range(steps):
        loss = model(images(200 + step)).pow(2).mean() + model(images(300)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("nested", [False, True])
def test_cutting_keeps_the_function(nested):
    model = network()
    grow(model, "3")
    if nested:
        grow(model, "3.branches.kxk.conv", seed=1)
    trained(model)
    x = images(100)
    before_eval, before_train = model(x), train_mode(model, x)
    inside = copy.deepcopy(model[3].kxk.conv)
    weak = ["1x1_avg", "kx1"]
    pruning.cut(model, "3", weak, [images(s) for s in range(8)])
    assert relative_error(before_eval, model(x)) < 1e-10
    assert relative_error(before_train, train_mode(model, x)) < 5e-3
    assert model[3].names == [name for name in dyrep.ALL_BRANCHES if name not in weak]
    if nested:  # the nested block keeps what it learned, bit for bit
        for name, branch in inside.branches.items():
            if name != "kxk":
                kept = model[3].kxk.conv.branches[name].state_dict()
                assert all(torch.equal(v, kept[k]) for k, v in branch.state_dict().items())


def test_cutting_all_branches_returns_to_a_plain_conv():
    model = network()
    grow(model, "3")
    trained(model)
    x = images(100)
    before = model(x)
    others = [name for name in model[3].names if name != "kxk"]
    weight = model[3].kxk.conv.weight
    pruning.cut(model, "3", others, [images(0)])
    assert type(model[3]) is nn.Conv2d
    assert model[3].weight is weight
    assert relative_error(before, model(x)) < 1e-10


def test_a_conv_that_gained_a_bias_when_it_was_cut_is_restored():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).double()
    grow(model, "0")
    trained(model)
    pruning.cut(model, "0", [n for n in model[0].names if n != "kxk"], [images(0)])
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).double()
    dyrep.apply_structure(fresh, dyrep.structure(model))
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images(5)), model.eval()(images(5)))


def test_the_published_rule_cuts_the_weak_and_only_the_weak():
    model = network()
    block = grow(model, "3")
    reference = block.kxk.norm.weight.abs().mean()
    shares = {"1x1": 0.5, "1x1_kxk": 0.3, "1x1_avg": 0.01, "1xk": 0.2, "kx1": 0.05, "identity": 0.4}
    with torch.no_grad():
        for name, share in shares.items():
            block.branches[name].norm.weight.fill_(share * reference)
    assert pruning.weak_branches(block, 0.02, 0.1) == ["1x1_avg", "kx1"]
    assert pruning.weak_branches(block, 0.5, 0.1) == []
    assert dyrep.branch_weights(model) == {"3": pytest.approx(shares)}


def test_moments_are_pooled_with_the_spread_of_the_means():
    model = nn.Sequential(nn.Identity())
    batches = [torch.zeros(4, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)]
    (seen,) = calibration.moments(model, [model[0]], batches)
    everything = torch.cat([batch.flatten() for batch in batches]).double()
    assert seen.mean.item() == pytest.approx(everything.mean().item())
    assert seen.var.item() == pytest.approx(everything.var(correction=0).item())


def test_a_top_level_conv_grows_and_its_structure_is_restored():
    """The published code crashes at resume if the name of the conv has no dot."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    generator = torch.Generator().manual_seed(0)
    expansion.grow(model, "0", dyrep.ALL_BRANCHES, [torch.randn(4, 3, 8, 8)], generator)
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3))
    dyrep.apply_structure(fresh, dyrep.structure(model))
    fresh.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), fresh.eval()(x))


def test_a_conv_that_was_grown_and_cut_twice_resumes_with_the_same_bits():
    """The first cut gives a depthwise conv its bias and keeps the strides of its weight."""

    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False, groups=8), nn.BatchNorm2d(8),
        )  # fmt: skip

    model, x = fresh(), [torch.randn(8, 3, 12, 12)]
    for _ in range(2):
        block = expansion.grow(model, "3", ("1x1", "1xk", "kx1"), x, torch.Generator())
        pruning.cut(model, "3", [name for name in block.names if name != "kxk"], x)
    again = fresh()
    dyrep.apply_structure(again, dyrep.structure(model))
    again.load_state_dict(model.state_dict(), strict=True)
    assert again[3].weight.stride() == model[3].weight.stride()
    assert torch.equal(model.train()(x[0]), again.train()(x[0]))
