"""Test that wrong requests are refused before a change, and convs that cannot grow are left."""

import copy

import pytest
import torch
from torch import nn

import dyrep
from dyrep import pruning
from dyrep.proof import relative_error
from tests.dyrep.networks import batches, example, grow_at, grown, network, optimizer_for


def held(optimizer):
    return {p for group in optimizer.param_groups for p in group["params"]}


class Unused(nn.Module):
    """A network with a conv that its forward does not call."""

    def __init__(self):
        super().__init__()
        self.net, self.idle = network(), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("score", ["gain", "gain_per_flop"])
def test_a_conv_that_is_not_used_is_passed_over(score):
    model = Unused()
    optimizer = optimizer_for(model)
    evolver = dyrep.DyRep(model, optimizer, saliency=score, grow=3)
    events = grow_at(evolver, "idle")
    assert {event.layer for event in events} == {"net.0", "net.3"}
    assert held(optimizer) == set(model.parameters())
    if score == "gain":
        assert "does not use" in evolver.left["idle"]


def test_a_conv_that_can_take_no_branch_is_passed_over():
    model = network()
    evolver = dyrep.DyRep(model, branches=["identity"])
    (event,) = grow_at(evolver, "0")
    assert event.layer == "3"
    assert "none of these branches" in evolver.left["0"]
    done = dyrep.expand(network(), branches=["identity"])
    assert set(done.grown) == {"3"}
    assert "none of these branches" in done.left["0"]


def test_branches_without_flops_cost_nothing():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Flatten())
    evolver = dyrep.DyRep(model, saliency="gain_per_flop", branches=["1x1_avg", "identity"])
    assert grow_at(evolver, "0")[0].branches == ["kxk", "1x1_avg", "identity"]


def test_a_conv_that_was_frozen_since_the_last_step_is_passed_over():
    model = network()
    evolver = dyrep.DyRep(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    evolver.accumulate()
    model[3].requires_grad_(False)
    model[0].requires_grad_(False)
    assert evolver.adjust(batches()) == []
    assert evolver.left == {"0": "frozen", "3": "frozen"}


def test_a_conv_that_is_the_whole_model_is_left():
    done = dyrep.expand(nn.Conv2d(3, 4, 3))
    assert not done.grown
    assert "nn.Sequential" in done.left[""]


def test_a_frozen_average_stays_frozen():
    model = network()
    average = copy.deepcopy(model).requires_grad_(False)
    grow_at(dyrep.DyRep(model, ema=average), "3")
    assert len(list(average.parameters())) == len(list(model.parameters()))
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_later_steps_do_not_change_a_saved_state():
    model = network()
    evolver = dyrep.DyRep(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    evolver.accumulate()
    state = evolver.state_dict()
    evolver.accumulate()
    assert state["saliency"]["steps"] == 1


class TwoOutputs(nn.Module):
    """A network that returns its scores by name, and a list of features."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        y = self.net[:6](x)
        return {"scores": self.net[6:](y), "features": [y]}


def test_a_network_may_return_several_tensors():
    model = TwoOutputs().eval()
    dyrep.expand(model)
    x = example()[0]
    fused = dyrep.fuse(model, inputs=x)
    assert relative_error(model(x)["scores"], fused(x)["scores"]) < 1e-5
    assert dyrep.fuse(model, inputs=x, fold_bn=True)(x)["features"][0].shape == (16, 6, 8, 8)


class Asking(nn.Module):
    """A network that reads attributes of its conv."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x):
        assert self.conv.out_channels == 4
        assert self.conv.stride == (2, 2)
        return self.conv(x).flatten(1)


def test_a_block_has_the_attributes_of_the_conv_but_not_its_weight():
    model = Asking()
    dyrep.expand(model)
    model(example()[0])
    with pytest.raises(AttributeError):
        model.conv.weight  # noqa: B018


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda model: dyrep.expand(model, branches=["3x3"]), "3x3"),
        (lambda model: dyrep.DyRep(model, adjust_interval=0), "adjust_interval=0"),
        (lambda model: dyrep.DyRep(model).adjust([]), "at least one"),
        (lambda model: pruning.cut(model, "3", ["1x1"], []), "at least one"),
        (lambda model: pruning.cut(model, "0", ["1x1"], batches()), "no branches"),
        (lambda model: pruning.cut(model, "3", ["kxk"], batches()), "cannot lose kxk"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(call, reason):
    model, _, _ = grown()
    before = dyrep.structure(model)
    with pytest.raises(ValueError, match=reason):
        call(model)
    assert dyrep.structure(model) == before


def test_batches_that_are_not_tensors_are_refused():
    with pytest.raises(TypeError, match="one tensor"):
        dyrep.DyRep(network()).adjust([example()])


def test_data_parallel_is_refused():
    with pytest.raises(TypeError, match="bare"):
        dyrep.DyRep(nn.DataParallel(network()))


def test_an_optimizer_of_another_network_is_refused():
    model, other = network(), network()
    with pytest.raises(ValueError, match="holds no parameter of this model"):
        dyrep.DyRep(model, torch.optim.SGD(other.parameters(), lr=0.1))


@pytest.mark.parametrize("seen", ["nothing", "zeroed gradients"])
def test_adjusting_without_gradients_is_refused(seen):
    model = network()
    evolver = dyrep.DyRep(model)
    if seen != "nothing":
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        model.zero_grad()
        evolver.accumulate()
    with pytest.raises(RuntimeError, match="before the gradients are zeroed"):
        evolver.adjust([torch.randn(2, 3, 8, 8)])


def test_a_single_batch_instead_of_a_list_is_refused():
    evolver = dyrep.DyRep(network())
    with pytest.raises(TypeError, match=r"\[batch\]"):
        evolver.adjust(torch.randn(2, 3, 8, 8))


def test_random_needs_steps_but_no_scores():
    model = network()
    evolver = dyrep.DyRep(model, saliency="random")
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    evolver.accumulate()
    assert [event.action for event in evolver.adjust([torch.randn(2, 3, 8, 8)])] == ["grow"]


@pytest.mark.parametrize(("zero", "words"), [(True, "was zero"), (False, "call accumulate")])
def test_zero_gradients_and_missing_gradients_are_different_errors(zero, words):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    evolver = dyrep.DyRep(model)
    images = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        if zero:
            (0 * model(images)).sum().backward()
        evolver.accumulate()
    with pytest.raises(RuntimeError, match=words):
        evolver.adjust(calibration=[images])
