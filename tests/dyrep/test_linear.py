"""Test linear blocks, which compute one convolution and are exact in train mode, too."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dyrep
from dyrep import branches, expansion, linear_branches, pruning
from dyrep.block import fitting
from dyrep.geometry import Geometry
from dyrep.proof import relative_error
from tests.dyrep.drawn import convs
from tests.dyrep.networks import example, network
from tests.dyrep.test_budget import held_values

pytestmark = pytest.mark.long

EVERY = (*dyrep.ALL_BRANCHES, *branches.LINEAR_ONLY)
OTHERS = [name for name in EVERY if name != "kxk"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def grow(model, path, names=EVERY, seed=0, **options):
    return expansion.grow(model, path, names, [], generator(seed), "linear", **options)


def single(inputs=4, outputs=4, **options):
    """Return a float64 network of one conv."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, **options)).double()


def both(model, x):
    """Return the outputs of two copies of a network, one in eval and one in train mode."""
    found = []
    for mode in (False, True):
        trial = copy.deepcopy(model).train(mode)
        found.append(trial(x).detach())
    return found


def assert_same(before, after, limit=1e-12):
    for one, other in zip(before, after, strict=True):
        assert relative_error(one, other) < limit


@settings(max_examples=40, deadline=None)
@given(convs(), st.booleans(), st.integers(0, 2**16))
def test_growing_and_cutting_any_conv_keep_the_function_in_both_modes(conv, norm, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels) if norm else nn.Identity())
    model.double()
    x = torch.randn(3, conv.in_channels, 17, 15, dtype=torch.float64)
    before = both(model, x)
    block = grow(model, "0", seed=seed)
    assert_same(before, both(model, x))
    grow(model, "0.branches.kxk.conv", seed=seed + 1)
    if "1x1_kxk" in block.names:
        grow(model, "0.branches.1x1_kxk.conv", seed=seed + 2)
    with torch.no_grad():
        for scale in dyrep.scales(model).values():
            scale.normal_(generator=generator(seed))
    before = both(model, x)
    assert_same(before, both(dyrep.fuse(model, inputs=x), x)[:1] + before[1:])
    for path in ("0.branches.kxk.conv", "0"):
        inner = model.get_submodule(path)
        pruning.cut(model, path, [name for name in inner.names if name != "kxk"])
        assert_same(before, both(model, x))
    assert model[0] is conv


@settings(max_examples=40, deadline=None)
@given(convs(), st.integers(0, 2**16))
def test_blocks_from_the_start_fold_and_are_cut_exactly(conv, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(conv)
    weight = conv.weight
    dyrep.expand(model, branches=EVERY, form="linear")
    block = model[0]
    with torch.no_grad():
        block.kxk.scale[0] = 0  # no cut can divide by the scale of this channel
    x = torch.randn(2, conv.in_channels, 17, 15, dtype=torch.float64)
    before = model(x).detach()
    assert block.kernel is weight
    assert relative_error(before, block.fuse()(x)) < 1e-12
    pruning.cut(model, "0", [name for name in block.names if name in ("1x1", "1x1_avg", "kx1")])
    assert relative_error(before, model(x).detach()) < 1e-12


GEOMETRIES = [{}, {"groups": 2}, {"groups": 4}, {"stride": 2}]


@pytest.mark.parametrize(
    ("branch", "options"),
    [(b, o) for b in [*OTHERS, None] for o in GEOMETRIES if (b, o) != ("identity", {"stride": 2})],
    ids=str,
)
def test_gradients_and_their_gradients_are_exact(branch, options):
    model = single(**options)
    grow(model, "0", OTHERS if branch is None else [branch])
    names, values = zip(*model.named_parameters(), strict=True)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *values), fast_mode=True)


@settings(max_examples=40, deadline=None)
@given(convs(), st.integers(0, 2**16))
def test_each_kernel_is_that_of_the_published_branch_without_its_norms(conv, seed):
    """test_blocks.py compares the kernels of published branches with what the branches compute."""
    torch.manual_seed(seed)
    geometry = Geometry.of(conv)
    for name in fitting(conv, dyrep.ALL_BRANCHES):
        ours = linear_branches.build(name, geometry, fixed=False).double()
        theirs = branches.build(name, geometry, lambda n: nn.BatchNorm2d(n, eps=0)).double()
        nn.init.normal_(ours.scale)
        for part, weight in ours.named_parameters():
            if part != "scale":
                nn.init.normal_(weight)
                theirs.get_parameter(part).data.copy_(weight)
        if name == "1x1_kxk":
            eye = torch.eye(geometry.in_channels // geometry.groups).repeat(geometry.groups, 1)
            theirs.reduce.weight.data.add_(eye[:, :, None, None])
        theirs.norm.weight.data.copy_(ours.scale)
        assert relative_error(theirs.equivalent()[0], ours.equivalent()[0]) < 1e-12


# the conv of a branch that learns, and the part of a gradient (out, in, 3, 3) that it can represent
REACHED = {
    "1x1": ("conv", lambda g: nn.functional.pad(g[:, :, 1:2, 1:2], (1, 1, 1, 1))),
    "1xk": ("conv", lambda g: nn.functional.pad(g[:, :, 1:2], (0, 0, 1, 1))),
    "kx1": ("conv", lambda g: nn.functional.pad(g[:, :, :, 1:2], (1, 1, 0, 0))),
    "1x1_avg": ("reduce", lambda g: g.mean((2, 3), keepdim=True).expand_as(g)),
    "1x1_kxk": ("conv", lambda g: g),
}


def test_the_part_of_a_gradient_that_a_branch_reaches_is_known_for_each_with_a_kernel():
    assert {*REACHED} == {*dyrep.ALL_BRANCHES} - {"kxk", "identity"}


@pytest.mark.parametrize("branch", REACHED)
def test_the_kernel_moves_faster_by_the_square_of_the_strength(branch):
    """A step on a branch adds strength^2 of its reachable gradient to the composed kernel."""
    model, strength = single(), 0.7
    block = grow(model, "0", [branch], strength=strength)
    (part,) = block.others()
    slope = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    before = block.composed(torch.float64)
    conv, reached = REACHED[branch]
    kernel = part.get_submodule(conv).weight
    (gradient,) = torch.autograd.grad((before * slope).sum(), kernel)
    with torch.no_grad():
        kernel.sub_(gradient)
    moved = before - block.composed(torch.float64)
    torch.testing.assert_close(moved, strength**2 * reached(slope))


def test_strengths_from_the_start_are_those_of_orepa():
    model = single()
    weight = model[0].weight.detach().clone()
    dyrep.expand(model, branches=EVERY, form="linear")
    starts = {
        path.split(".")[2]: scale.unique().tolist() for path, scale in dyrep.scales(model).items()
    }
    assert starts == {
        "kxk": [0.25], "1x1": [1.0], "1x1_kxk": [0.5], "1x1_avg": [0.25],
        "1xk": [0.5], "kx1": [0.5], "identity": [0.5], "1x1_prior": [0.0], "dw_1x1": [0.5],
    }  # fmt: skip
    chain = model[0].branches["1x1_kxk"]
    assert not chain.reduce.weight.any()
    assert torch.equal(chain.kernel(torch.float64), 0.5 * chain.conv.weight)
    assert torch.equal(model[0].kernel, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_block_keeps_dtype_and_memory_layout(dtype, layout):
    model = single(8, 8).to(dtype).to(memory_format=layout)
    x = torch.randn(2, 8, 9, 9).to(dtype).to(memory_format=layout)
    before = model(x).float()
    grow(model, "0")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(
        m.weight.is_contiguous(memory_format=layout)
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
    after = model(x)
    assert after.is_contiguous(memory_format=layout)
    assert relative_error(before, after.float()) < (1e-5 if dtype is torch.float32 else 0.05)


def test_under_autocast_the_kernel_is_composed_in_float32(monkeypatch):
    model, seen = single(8, 8).float(), []
    block = grow(model, "0")
    expected = block.composed(torch.float32)
    monkeypatch.setattr(
        nn.Conv2d, "_conv_forward", lambda conv, x, kernel, bias: seen.append(kernel) or x
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 8, 9, 9))
    assert seen[0].dtype is torch.float32
    assert torch.equal(seen[0], expected)


def test_a_block_compiles_without_a_graph_break():
    model = network()
    for path in ("3", "3.branches.1x1_kxk.conv"):
        grow(model, path)
    x = example()[0]
    gradients = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(x).float().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for eager, compiled in zip(*gradients, strict=True):
        assert relative_error(eager, compiled) < 1e-2  # the compiler casts in backward, too


def test_a_forward_keeps_the_composed_kernel_and_little_more():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    model, x = nn.Sequential(copy.deepcopy(conv)), torch.randn(2, 128, 8, 8)
    grow(model, "0")
    kernels = (held_values(lambda: model(x)) - held_values(lambda: conv(x))) / conv.weight.numel()
    assert 0.9 < kernels < 1.5
