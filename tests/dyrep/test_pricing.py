"""Branches one by one: what each promises, what each costs, and that the budget is kept."""

import copy
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dyrep
from dyrep import expansion, linear, linear_branches, pricing, promise
from dyrep.block import fitting
from dyrep.geometry import Geometry
from dyrep.proof import relative_error
from tests.dyrep.drawn import convs
from tests.dyrep.networks import batches, network, optimizer_for, step

pytestmark = pytest.mark.long

OTHERS = [name for name in dyrep.ALL_BRANCHES if name != "kxk"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def grower(model=None, optimizer=None, **options):
    model = network() if model is None else model
    return dyrep.Grower(model, optimizer or optimizer_for(model), **{"cost": "flops", **options})


@pytest.fixture(autouse=True)
def each_step(monkeypatch):
    """Look at each step, so that few are enough."""
    monkeypatch.setattr(promise, "EVERY", 1)


def train(model, optimizer, evolver, steps=8):
    """Make steps on one batch that are too short, so that every branch would help."""
    for group in optimizer.param_groups:
        group["lr"] = 0.001
    for _ in range(steps):
        step(model, optimizer, evolver)


@settings(max_examples=15, deadline=None)
@given(convs(), st.integers(0, 2**16))
def test_the_gain_is_what_a_step_on_the_branch_takes_from_the_loss(conv, seed):
    """The loss is <G, W>: first what the kernels of the branch take from it, then its strengths."""
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
        first = getattr(branch, "reduce", None) if name == "1x1_kxk" else None  # counts for nothing
        moved = [
            p
            for p in branch.parameters()
            if p.ndim > 1 and (first is None or p is not first.weight)
        ]
        assert sum(p.grad.square().sum().item() for p in moved) == pytest.approx(fast - slow)
        learned = [told(branch, gradient, draw) for draw in range(60)]
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


def test_nothing_grows_where_steps_go_too_far_and_the_reason_is_told():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    evolver = grower(model, optimizer, max_cost=10)
    for _ in range(8):
        step(model, optimizer, evolver)
    assert evolver.adjust(batches()) == []
    assert set(evolver.left) == {"0", "3"}
    assert all("steps go far enough" in reason for reason in evolver.left.values())


def test_one_step_of_several_is_looked_at_beside_the_next(monkeypatch):
    monkeypatch.setattr(promise, "EVERY", 4)
    model = network()
    evolver = grower(model)
    held = []
    for _ in range(9):
        train(model, evolver.optimizer, evolver, steps=1)
        held.append(len(evolver.state_dict()["saliency"]["before"]))
    assert held == [2, 0, 0, 0, 2, 0, 0, 0, 2]
    assert evolver.state_dict()["saliency"]["steps"] == 2


def test_one_step_tells_nothing_and_no_gradient_is_an_error():
    model = network()
    evolver = grower(model)
    with pytest.raises(RuntimeError, match="no gradient was seen"):
        evolver.adjust(batches())
    train(model, evolver.optimizer, evolver, steps=1)
    assert evolver.adjust(batches()) == []


def told(branch, gradient, seed):
    """Return the squared gradient of the strengths of a branch whose kernels are drawn anew."""
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


def test_a_branch_that_is_there_is_not_added_again():
    model = network()
    expansion.add(model, "0", ["1x1"], seeded(), 0.5)
    with pytest.raises(ValueError, match="has 1x1 already"):
        expansion.add(model, "0", ["1x1"], seeded(), 0.5)


def test_it_grows_what_is_worth_most_and_keeps_to_its_budget():
    model = network()
    optimizer = optimizer_for(model)
    evolver = grower(model, optimizer, grow=100, max_cost=1.3)
    train(model, optimizer, evolver)
    events = evolver.adjust(batches())
    x = batches()[0]
    cost = dyrep.cost(model, x).flops / dyrep.cost(dyrep.fuse(model), x).flops
    assert 1 < cost <= 1 + sum(event.price for event in events) <= 1.3
    layers = dict(events[0].saliency)
    assert list(layers.values()) == sorted(layers.values(), reverse=True)
    assert events[0].layer == next(iter(layers)), "the best first"
    for event in events:
        assert [name for name in event.branches if name in event.worth] == event.branches[1:]
        assert max(event.worth.values()) == layers[event.layer]
        assert {c["branch"]: c["gain"] / c["price"] for c in event.chosen} == event.worth
        assert sum(c["price"] for c in event.chosen) == event.price
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(model.parameters())


def test_what_does_not_fit_into_the_budget_is_left_with_the_reason():
    model = network()
    optimizer = optimizer_for(model)
    evolver = grower(model, optimizer, branches=["1x1_kxk"], max_cost=1.0)
    train(model, optimizer, evolver)
    assert evolver.adjust(batches()) == []
    assert set(evolver.left) == {"0", "3"}
    assert all("(max_cost 1)" in reason for reason in evolver.left.values())


def test_a_layer_that_grew_rests_for_one_adjustment():
    model = network()
    optimizer = optimizer_for(model)
    evolver = grower(model, optimizer, grow=1, max_cost=10, cut_ratio=0)
    layers = []
    for _ in range(4):
        train(model, optimizer, evolver)
        (event,) = evolver.adjust(batches())
        layers.append(event.layer)
    assert all(one != other for one, other in pairwise(layers))
    assert len(set(layers)) < len(layers), "and may grow again after that"


@pytest.mark.parametrize("measure", ["flops", "seconds"])
def test_it_goes_on_from_a_checkpoint_with_the_same_bits(monkeypatch, measure):
    clock = random.Random(0)  # that tells something else each time
    monkeypatch.setattr(pricing, "step_seconds", lambda *_: 1 + clock.random())
    model = network()
    optimizer = optimizer_for(model)
    evolver = grower(model, optimizer, grow=2, max_cost=10, cost=measure)
    train(model, optimizer, evolver)
    evolver.adjust(batches())
    train(model, optimizer, evolver)
    other = network()
    dyrep.apply_structure(other, dyrep.structure(model))
    other.load_state_dict(model.state_dict())
    second = grower(other, grow=2, max_cost=10, cost=measure)
    second.load_state_dict(evolver.state_dict())
    assert [e.to_dict() for e in second.adjust(batches())] == [
        e.to_dict() for e in evolver.adjust(batches())
    ]
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_an_average_gets_the_same_branches_and_keeps_its_function():
    model = network()
    optimizer, ema = optimizer_for(model), AveragedModel(model)
    evolver = grower(model, optimizer, ema=ema, grow=4, max_cost=10)
    x = batches()[0]
    for _ in range(3):
        train(model, optimizer, evolver)
        ema.update_parameters(model)
        before = ema.module.eval()(x)
        evolver.adjust(batches())
        assert relative_error(before, ema.module.eval()(x)) < 1e-5
        assert dyrep.structure(ema.module) == dyrep.structure(model)
        model.train()


def test_chance_chooses_other_branches_at_the_same_cost():
    def grown(choose, seed):
        model = network()
        optimizer = optimizer_for(model)
        evolver = grower(model, optimizer, choose=choose, seed=seed, max_cost=1.3, grow=3)
        train(model, optimizer, evolver)
        return [event.layer + ",".join(event.branches) for event in evolver.adjust(batches())]

    assert grown("random", 1) == grown("random", 1)
    assert len({str(grown("random", seed)) for seed in range(5)}) > 1


def test_seconds_are_measured_once_per_kind(monkeypatch):
    seen = []

    def seconds(model, batch):
        seen.append(model)
        return float(sum(p.numel() for p in model.parameters()))

    monkeypatch.setattr(pricing, "step_seconds", seconds)
    model = network()
    optimizer = optimizer_for(model)
    evolver = grower(model, optimizer, cost="seconds", max_cost=1.5)
    train(model, optimizer, evolver)
    evolver.adjust(batches())
    first = len(seen)
    train(model, optimizer, evolver)
    evolver.adjust(batches())
    assert first > 0 and len(seen) == first
    whole = [model for model in seen if not isinstance(model, pricing.Composing)]
    assert len(whole) == 1 + pricing.PLAIN_ROUNDS, "all else is composing, whatever the images"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"choose": "best"}, "use worth or random"),
        ({"max_cost": 0.9}, "less than the plain network"),
        ({"cost": "time"}, "choose flops or seconds"),
        ({"branches": ["2x2"]}, "unknown branches"),
        ({"branches": ["1x1", "dw_1x1"]}, "gain is not known"),
        ({"strength": 0.0}, "use a number above 0"),
    ],
)
def test_bad_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        grower(**options)


def test_it_needs_a_batch_to_know_what_a_step_costs():
    model = network()
    optimizer = optimizer_for(model)
    evolver = grower(model, optimizer)
    train(model, optimizer, evolver)
    with pytest.raises(ValueError, match="needs calibration batches: max_cost"):
        evolver.adjust()


def test_blocks_from_the_start_get_no_more():
    model = network()
    dyrep.expand(model, branches=("kxk", "1x1"), form="linear")
    assert pricing.open_branches(model, dyrep.ALL_BRANCHES) == {}
    assert linear.scales(model)


def test_prices_are_those_of_the_slowest_rank(monkeypatch):
    monkeypatch.setattr(pricing, "slowest", lambda value: 2 * value)
    model, x = network(), batches()[0]
    price = pricing.Prices("flops").price(model[3], "1x1", model, x)
    monkeypatch.undo()
    assert price == 2 * pricing.Prices("flops").price(model[3], "1x1", model, x)
