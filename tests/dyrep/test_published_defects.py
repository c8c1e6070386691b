"""Test that defects of the published code, found by running it, do not occur here.

Growing and cutting in train mode, nested blocks, scalers, optimizers, averages and wrappers have
their tests in `test_growing.py`, `test_followers.py` and `test_wrappers.py`.
"""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dyrep
from dyrep import expansion, pruning
from dyrep.proof import relative_error
from dyrep.saliency import Saliency
from tests.dyrep.networks import batches, example, grow_at, grown, network, optimizer_for, step
from tests.launcher import in_ranks


def test_the_published_score_is_nothing_but_the_epsilon_of_the_norm():
    """A norm undoes the scale of its conv, so only the norm's epsilon keeps sum(g*w) from 0."""
    model = network(bias=False).double()
    x, y = example(count=64)
    scores = {}
    for name in ("synflow", "snip"):
        saliency = Saliency(name)
        saliency.watch({"3": model[3]})
        model.zero_grad()
        cross_entropy(model(x.double()), y).backward()
        saliency.accumulate()
        ((_, scores[name]),) = saliency.ranking(torch.Generator())
    assert 0 <= abs(scores["synflow"]) < 1e-4 * scores["snip"]
    z = model[:3](x.double())
    var = model[3](z).var((0, 2, 3), correction=0)
    norm = model[4]
    closed = (norm.eps / (var + norm.eps) * norm.weight * norm.weight.grad).sum()
    exact = (model[3].weight * model[3].weight.grad).sum()
    assert exact.item() == pytest.approx(closed.item(), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"dilation": 2, "padding": 2},
        {"dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": "same"},
        {"padding": (1, 0)},
        {"stride": (2, 1)},
        {"groups": 4},
        {"groups": 8, "padding": 1},
    ],
    ids=str,
)
def test_growing_keeps_the_shape_and_the_function_of_a_conv_with_these_options(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, **options)).double().eval()
    x = torch.randn(4, 8, 17, 17, dtype=torch.float64)
    before = model(x)
    expansion.grow(model, "0", dyrep.ALL_BRANCHES, [x], torch.Generator().manual_seed(0))
    assert model(x).shape == before.shape
    assert relative_error(before, model(x)) < 1e-10


@pytest.mark.parametrize(("inputs", "groups", "kernel"), [(16, 8, 3), (8, 1, 2), (8, 1, 4)])
def test_growing_does_not_crash_on_these_convs(inputs, groups, kernel):
    """The published code crashes on 8 groups of 2 inputs, and on even kernels padded by half."""
    conv = nn.Conv2d(inputs, 8, kernel, padding=kernel // 2, groups=groups).double()
    model = nn.Sequential(conv).eval()
    x = torch.randn(4, inputs, 9, 9, dtype=torch.float64)
    before = model(x)
    expansion.grow(model, "0", dyrep.ALL_BRANCHES, [x], torch.Generator().manual_seed(0))
    assert relative_error(before, model(x)) < 1e-10


@pytest.mark.parametrize("mode", [True, False])
def test_a_new_block_is_in_the_mode_of_its_conv_and_so_is_everything_else(mode):
    model = network().train(mode)
    model[1].eval()  # the user froze this norm
    expansion.grow(model, "3", dyrep.ALL_BRANCHES, batches(), torch.Generator().manual_seed(0))
    assert all(m.training is mode for m in model[3].modules())
    assert model[1].training is False


def test_new_norms_have_the_momentum_of_the_network():
    model = network()
    for norm in (model[1], model[4]):
        norm.momentum = 0.03
    _, counted = model[1].momentum, model[1].num_batches_tracked.clone()
    expansion.grow(model, "3", dyrep.ALL_BRANCHES, batches(), torch.Generator().manual_seed(0))
    momenta = {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.03}
    assert torch.equal(model[1].num_batches_tracked, counted)


def test_a_network_for_several_processes_gets_synchronised_norms():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    expansion.grow(model, "3", dyrep.ALL_BRANCHES, batches(), torch.Generator().manual_seed(0))
    kinds = {type(m) for m in model[3].modules() if hasattr(m, "running_mean")}
    assert kinds == {nn.SyncBatchNorm}
    step(model, optimizer_for(model))


def test_recursion_counts_blocks_not_names():
    """The published code reads the depth from the path, and counts a user's names as blocks."""
    model = nn.ModuleDict({"dbb_dbb": network()})
    model.forward = model["dbb_dbb"].forward
    evolver = dyrep.DyRep(model)
    (event,) = grow_at(evolver, "dbb_dbb.3")
    assert event.layer == "dbb_dbb.3"
    (event,) = grow_at(evolver, "dbb_dbb.3.branches.kxk.conv")
    assert event.action == "grow"
    inner = event.layer + ".branches.kxk.conv"
    assert inner not in dict(grow_at(evolver, inner)[0].saliency), "a third level was a candidate"


def test_a_static_block_can_be_cut():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).double()
    dyrep.expand(model)
    x = torch.randn(8, 4, 9, 9, dtype=torch.float64)
    before = model.eval()(x)
    pruning.cut(model, "0", ["1x1"], [x])
    assert model[0].names == ["kxk", "1x1_kxk", "1x1_avg"]
    assert relative_error(before, model(x)) < 1e-10


def test_a_grown_network_can_be_saved_whole_and_copied():
    model, _, _ = grown()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    x = batches()[0]
    for other in (torch.load(buffer, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(model.eval()(x), other.eval()(x))


def test_a_fused_network_can_be_trained_further():
    model, _, _ = grown()
    fused = dyrep.fuse(model)
    assert all(parameter.requires_grad for parameter in fused.parameters())
    assert not any("branches" in key for key in fused.state_dict())


def test_adjusting_leaves_the_random_generator_of_the_training_alone():
    model = network()
    evolver = dyrep.DyRep(model, optimizer_for(model))
    before = torch.get_rng_state()
    grow_at(evolver, "3")
    assert torch.equal(torch.get_rng_state(), before)


POOLED = """
import os, torch, torch.distributed as dist
from torch import nn
import dyrep
from dyrep import expansion
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(100 + rank)  # the global generator differs, the new branches must not
model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).double()
model.load_state_dict({k: v for k, v in torch.load("STATE", weights_only=True).items()})
everything = torch.load("IMAGES", weights_only=True)
mine = [everything[rank::2][:8], everything[rank::2][8:]]
expansion.grow(model, "0", dyrep.ALL_BRANCHES, mine, torch.Generator().manual_seed(5))
torch.save(model.state_dict(), f"RESULT{rank}")
dist.barrier()  # a rank that leaves early breaks the connection of the other
os._exit(0)  # gloo's threads sometimes abort a process that takes its group down
"""


@pytest.mark.long
def test_statistics_of_two_ranks_are_those_of_all_images(tmp_path):
    """The published code draws other branches on each rank, and averages their variances.

    One rank sees images around -1, the other around +2, so the variance of all images is wrong
    without the spread of the means.
    """
    torch.manual_seed(0)
    images = torch.randn(32, 3, 8, 8, dtype=torch.float64)
    images[0::2] -= 1
    images[1::2] += 2
    alone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).double()
    torch.save(alone.state_dict(), tmp_path / "state")
    torch.save(images, tmp_path / "images")
    text = POOLED.replace("STATE", str(tmp_path / "state"))
    text = text.replace("IMAGES", str(tmp_path / "images"))
    (tmp_path / "worker.py").write_text(text.replace("RESULT", str(tmp_path / "result")))
    done = in_ranks(tmp_path / "worker.py")
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"result{r}", weights_only=True) for r in (0, 1))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    seen = images
    for key in ("1x1", "1xk", "kx1"):
        weight = first[f"0.branches.{key}.conv.weight"]
        height, width = weight.shape[2:]
        z = nn.functional.conv2d(seen, weight, padding=(height // 2, width // 2))
        mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
        torch.testing.assert_close(first[f"0.branches.{key}.norm.running_mean"], mean)
        torch.testing.assert_close(first[f"0.branches.{key}.norm.running_var"], var)
