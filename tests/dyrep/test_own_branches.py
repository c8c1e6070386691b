"""Test branches that are part of a network, as in RepVGG, and wider depthwise branches."""

import json

import pytest
import torch
from torch import nn

import dyrep
from dyrep.block import grown_depth
from dyrep.proof import relative_error
from dyrep.pruning import weak_in
from tests.dyrep.drawn import randomise
from tests.dyrep.networks import batches, grow_at, network, optimizer_for, step

pytestmark = pytest.mark.long


def owning(form="batchnorm"):
    """Return a network whose two convs have RepVGG's branches as their own."""
    model = network(bias=False)
    absorb = batches(1)[0] if form == "batchnorm" else None
    dyrep.expand(model, branches=dyrep.REPVGG_BRANCHES, absorb=absorb, form=form, own=True)
    return model


def trained_like(model):
    randomise(model, 0.3)
    return model.eval()


def test_own_branches_are_marked_in_the_structure_and_restored_from_it():
    model = owning()
    assert [list(block.own) for block in (model[0], model[3])] == [
        ["kxk", "1x1"],
        ["kxk", "1x1", "identity"],
    ]
    again = network(bias=False)
    dyrep.apply_structure(again, json.loads(json.dumps(dyrep.structure(model))))
    again.load_state_dict(model.state_dict(), strict=True)
    assert dyrep.structure(again) == dyrep.structure(model)
    assert "own" not in str(dyrep.structure(network()))


@pytest.mark.parametrize("form", ["batchnorm", "linear"])
def test_a_network_grows_inside_own_branches_as_deep_as_without_and_fuses_exactly(form):
    model = owning(form)
    optimizer = optimizer_for(model)
    evolver = dyrep.DyRep(model, optimizer, form=form)
    step(model, optimizer)
    for path in ("3.branches.kxk.conv", "3.branches.kxk.conv.branches.kxk.conv"):
        assert grow_at(evolver, path)[0].layer == path
        step(model, optimizer)
    assert grown_depth(model, "3.branches.kxk.conv.branches.kxk.conv.branches.kxk.conv") == 2
    plain = dyrep.fuse(model.double(), inputs=batches(1, torch.float64)[0])
    x = batches(1, torch.float64)[0]
    assert relative_error(model.eval()(x), plain.eval()(x)) < 1e-12
    assert not dyrep.block.blocks(plain)


def test_own_branches_are_never_cut_however_weak():
    model = owning()
    optimizer = optimizer_for(model)
    evolver = dyrep.DyRep(model, optimizer)
    grow_at(evolver, "3.branches.kxk.conv")
    with torch.no_grad():
        for block in dyrep.block.blocks(model).values():
            for number, branch in enumerate(block.others()):
                branch.norm.weight.fill_(1e-3 if number == 0 else 1.0)
    assert list(weak_in(model, 0.02, 0.1, {})) == ["3.branches.kxk.conv"]


@pytest.mark.parametrize("form", ["batchnorm", "linear"])
def test_static_blocks_go_inside_own_branches(form):
    model = owning(form)
    absorb = batches(1)[0] if form == "batchnorm" else None
    done = dyrep.expand(model, absorb=absorb, form=form)
    assert list(done.grown) == ["0.branches.kxk.conv", "3.branches.kxk.conv"]
    assert not done.absorbed
    x = batches(1)[0]
    assert relative_error(trained_like(model)(x), dyrep.fuse(model, inputs=x)(x)) < 1e-5


def depthwise():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(4),
    )  # fmt: skip


def test_only_depthwise_convs_have_wider_chains_which_fuse_exactly_and_are_in_the_structure():
    model = depthwise()
    dyrep.expand(model, widen_depthwise=2)
    chains = [model[place].branches["1x1_kxk"].reduce for place in (0, 1)]
    assert [conv.out_channels for conv in chains] == [3, 8]
    assert [e.get("widen") for e in dyrep.structure(model)["blocks"]] == [None, 2]
    again = depthwise()
    dyrep.apply_structure(again, json.loads(json.dumps(dyrep.structure(model))))
    again.load_state_dict(trained_like(model).state_dict(), strict=True)
    x = batches(1, torch.float64)[0]
    fused = dyrep.fuse(again.double().eval(), inputs=x)
    assert relative_error(model.double()(x), fused(x)) < 1e-12


@pytest.mark.parametrize(("widen", "form"), [(0, "batchnorm"), (2, "linear")])
def test_an_impossible_width_is_refused(widen, form):
    with pytest.raises(ValueError, match="widen_depthwise"):
        dyrep.expand(depthwise(), form=form, widen_depthwise=widen)


def test_single_branches_join_own_linear_branches_which_stay():
    model = owning("linear")
    optimizer = optimizer_for(model)
    grower = dyrep.Grower(model, optimizer, choose="random", max_cost=9, cost="flops", grow=3)
    for seed in range(4):
        step(model, optimizer, grower, seed)
    grown = [event for event in grower.adjust(batches()) if event.action == "grow"]
    assert sum(len(event.worth) for event in grown) == 3
    with torch.no_grad():
        for block in dyrep.block.blocks(model).values():
            for branch in block.others():
                branch.scale.mul_(1e-3)
    step(model, optimizer, grower)
    grower.adjust(batches())
    assert all(set(block.own) <= set(block.names) for block in (model[0], model[3]))
    assert sum(len(block.names) for block in (model[0], model[3])) < 5 + 6
