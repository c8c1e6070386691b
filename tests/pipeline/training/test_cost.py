"""Test `training.cost`: the cost of a training, measured and counted in steps of the plain network."""

import copy
import itertools
from contextlib import nullcontext

import pytest
import torch

import dyrep
from dyrep.block import blocks
from pipeline.contract.world import World
from pipeline.networks import architectures
from pipeline.planning import compose
from pipeline.training import cost, generators
from pipeline.training.cost import Cost
from tests.pipeline.training.learning import RGB
from tests.runs import composed


@pytest.fixture
def config():
    import json

    return compose.validated(json.loads(composed(*RGB, "name=c")))


def test_steps_are_summed_at_what_each_costs(config):
    counted = Cost(config, 10, None)
    for price in (1.0, 1.0, 2.5, 2.5):
        counted.per_step = price
        counted.count()
    assert counted.plain_steps == 7.0
    again = Cost(config, 10, counted.state())
    again.count()
    assert (again.plain_steps, again.numbers()["step_cost"]) == (9.5, 2.5)


@pytest.mark.parametrize("saved", [{}, {"per_step": None, "plain_steps": 5.0}])
def test_a_total_is_not_reported_if_the_cost_of_a_step_was_unknown(config, saved):
    counted = Cost(config, 10, saved)
    counted.count()
    counted.per_step = 2.0
    counted.count()
    assert "plain_steps" not in counted.numbers()


def test_measuring_changes_neither_the_network_nor_the_generators(config, monkeypatch):
    model = architectures.build(config.model, 10)
    counted, batch = Cost(config, 10, None), torch.randn(4, 3, 16, 16)
    assert counted.measure(model, batch, nullcontext(), 100) == (1.0, 0.0)
    dyrep.expand(model)
    before, drawn = copy.deepcopy(model.state_dict()), generators.state()["torch"]
    assert counted.measure(model, batch, nullcontext(), 100).per_step >= 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(generators.state()["torch"], drawn)
    assert all(parameter.grad is None for parameter in model.parameters())

    def does_not_fit(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cost, "step_seconds", does_not_fit)
    assert counted.measure(model, batch, nullcontext(), 100) is None
    assert torch.equal(generators.state()["torch"], drawn)


@pytest.mark.parametrize(
    ("seconds", "steps", "pairs"),
    [
        (0.01, 0, cost.FEWEST),  # a short training times the fewest pairs
        (0.01, 10**6, cost.MOST),  # a long training times the most pairs
        (0.01, 10, cost.FEWEST),
        (20.0, 10**6, 1),  # one pair is enough for very long steps
    ],
)
def test_the_number_of_timed_pairs_is_bounded(monkeypatch, seconds, steps, pairs):
    clock, calls = [0.0], []

    def timed(model, batch):
        calls.append(model)
        clock[0] += seconds * (3 if model == "grown" else 1)
        return seconds * (3 if model == "grown" else 1)

    monkeypatch.setattr(cost, "step_seconds", timed)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    assert cost._times_plain(
        "grown", "plain", None, nullcontext(), steps
    ).per_step == pytest.approx(3.0)
    assert calls.count("plain") == pairs + 1


def test_the_time_that_another_process_takes_does_not_count(monkeypatch):
    """Another process slows most steps, each by a different time; the fastest steps decide."""
    disturbed = itertools.cycle([0.9, 0.0, 3.1, 0.4, 7.7, 0.0, 1.3])

    def timed(model, batch):
        return (3.0 if model == "grown" else 1.0) + next(disturbed)

    monkeypatch.setattr(cost, "step_seconds", timed)
    assert cost._times_plain("grown", "plain", None, nullcontext(), 10**6).per_step == 3.0


def test_a_network_that_does_not_fit_is_reported_and_each_timed_step_enters_autocast(
    config, monkeypatch
):
    world = World(rank=0, world_size=1, device=torch.device("cpu"), hang_timeout=60)
    model = architectures.build(config.model, 10)
    dyrep.expand(model)
    entered, counted = [], Cost(config, 10, None)

    class Precision:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(cost, "step_seconds", lambda model, batch: 2.0 if blocks(model) else 1.0)
    assert counted.renew(world, model, Precision(), 0) == ""
    assert (counted.per_step, len(entered)) == (2.0, 2 * (1 + cost.FEWEST))

    def does_not_fit(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cost, "step_seconds", does_not_fit)
    assert "what a step costs is not known" in counted.renew(world, model, Precision(), 0)
    assert counted.per_step is None
