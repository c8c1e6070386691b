"""Test growth branch by branch: what a branch costs, which is chosen, how the budget is kept."""

import random
from itertools import pairwise

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import dyrep
from dyrep import linear, pricing, promise
from dyrep.proof import relative_error
from tests.dyrep.networks import batches, network, optimizer_for, step

pytestmark = pytest.mark.long


def grower(model=None, optimizer=None, **options):
    model = network() if model is None else model
    return dyrep.Grower(model, optimizer or optimizer_for(model), **{"cost": "flops", **options})


@pytest.fixture(autouse=True)
def each_step(monkeypatch):
    """Let the grower watch every step, so that a few steps are enough."""
    monkeypatch.setattr(promise, "EVERY", 1)


def train(model, optimizer, evolver, steps=8):
    """Train on one batch, with steps so short that every branch would help."""
    for group in optimizer.param_groups:
        group["lr"] = 0.001
    for _ in range(steps):
        step(model, optimizer, evolver)


def test_nothing_grows_if_steps_go_too_far_and_the_reason_is_given():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    evolver = grower(model, optimizer, max_cost=10)
    for _ in range(8):
        step(model, optimizer, evolver)
    assert evolver.adjust(batches()) == []
    assert set(evolver.left) == {"0", "3"}
    assert all("no branch gains" in reason for reason in evolver.left.values())


def test_one_step_of_several_is_compared_with_the_next(monkeypatch):
    monkeypatch.setattr(promise, "EVERY", 4)
    model = network()
    evolver = grower(model)
    held = []
    for _ in range(9):
        train(model, evolver.optimizer, evolver, steps=1)
        held.append(len(evolver.state_dict()["saliency"]["before"]))
    assert held == [2, 0, 0, 0, 2, 0, 0, 0, 2]
    assert evolver.state_dict()["saliency"]["steps"] == 2


def test_nothing_grows_after_one_step_and_no_gradient_is_an_error():
    model = network()
    evolver = grower(model)
    with pytest.raises(RuntimeError, match="no gradient was seen"):
        evolver.adjust(batches())
    train(model, evolver.optimizer, evolver, steps=1)
    assert evolver.adjust(batches()) == []


def test_the_branches_worth_most_grow_within_the_budget():
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
    assert events[0].layer == next(iter(layers)), "the layer worth most does not grow first"
    for event in events:
        assert [name for name in event.branches if name in event.worth] == event.branches[1:]
        assert max(event.worth.values()) == layers[event.layer]
        assert {c["branch"]: c["gain"] / c["price"] for c in event.chosen} == event.worth
        assert sum(c["price"] for c in event.chosen) == event.price
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(model.parameters())


def test_a_conv_that_does_not_fit_into_the_budget_is_left_with_the_reason():
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
    assert len(set(layers)) < len(layers), "no layer grew again after its rest"


@pytest.mark.parametrize("measure", ["flops", "seconds"])
def test_a_grower_continues_from_a_checkpoint_with_the_same_bits(monkeypatch, measure):
    clock = random.Random(0)  # each measurement gives another time
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


def test_a_random_choice_depends_on_the_seed_alone():
    def grown(choose, seed):
        model = network()
        optimizer = optimizer_for(model)
        evolver = grower(model, optimizer, choose=choose, seed=seed, max_cost=1.3, grow=3)
        train(model, optimizer, evolver)
        return [event.layer + ",".join(event.branches) for event in evolver.adjust(batches())]

    assert grown("random", 1) == grown("random", 1)
    assert len({str(grown("random", seed)) for seed in range(5)}) > 1


def test_seconds_are_measured_once_per_kind_of_block(monkeypatch):
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
    assert len(whole) == 1 + pricing.PLAIN_ROUNDS, "something other than composing was timed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choose": "best"}, "use worth or random"),
        ({"max_cost": 0.9}, "less than the plain network"),
        ({"cost": "time"}, "choose flops or seconds"),
        ({"branches": ["2x2"]}, "unknown branches"),
        ({"branches": ["1x1", "dw_1x1"]}, "gain is not known"),
        ({"strength": 0.0}, "use a number above 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        grower(**options)


def test_a_grower_needs_a_batch_to_know_what_a_step_costs():
    model = network()
    optimizer = optimizer_for(model)
    evolver = grower(model, optimizer)
    train(model, optimizer, evolver)
    with pytest.raises(ValueError, match="needs calibration batches: max_cost"):
        evolver.adjust()


def test_blocks_from_the_start_get_no_more_branches():
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
