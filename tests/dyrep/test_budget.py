"""Test that a network grows within its limit of cost and within the memory of its device."""

import gc
import statistics

import pytest
import torch
from torch import nn

import dyrep
from dyrep import budget
from dyrep.block import fitting, place_block
from tests.dyrep.networks import batches, example, grow_at, network, optimizer_for, step


def grow_everything(**options):
    model = network()
    optimizer = optimizer_for(model)
    evolver = dyrep.DyRep(model, optimizer, grow=10, **options)
    step(model, optimizer, evolver)
    return model, evolver, evolver.adjust(batches())


def test_growth_stops_before_the_limit_is_exceeded():
    x = batches()[0]
    plain = dyrep.cost(network(), x).flops
    model, evolver, events = grow_everything(max_cost=2.5)
    assert [event.action for event in events] == ["grow"]
    assert dyrep.cost(model, x).flops <= 2.5 * plain
    (reason,) = evolver.left.values()
    assert "max_cost 2.5" in reason
    dyrep.expand(model, list(evolver.left), branches=dyrep.ALL_BRANCHES)
    assert dyrep.cost(model, x).flops > 2.5 * plain, "the refused layer fits into the limit"


def test_without_a_limit_every_conv_grows():
    _model, evolver, events = grow_everything()
    assert len(events) == 2
    assert evolver.left == {}


def test_the_predicted_cost_is_the_cost():
    model, x = network(), batches()[0]
    shape = budget.input_shapes(model, ["3"], x)["3"]
    assert shape == (8, 6, 8, 8)
    before = dyrep.cost(model, x)
    added = budget.extra_cost(model, "3", dyrep.ALL_BRANCHES, shape)
    place_block(model, "3", dyrep.ALL_BRANCHES)
    after = dyrep.cost(model, x)
    assert after.flops - before.flops == added.flops > 0
    assert after.parameters - before.parameters == added.parameters > 0


def test_a_limit_in_seconds_is_measured_beside_the_plain_network(monkeypatch):
    """A stand-in for the clock makes the time of a step equal to the number of parameters."""
    seen = []

    def seconds(model, batch):
        seen.append(len(batch))
        return float(sum(p.numel() for p in model.parameters()))

    monkeypatch.setattr(budget, "step_seconds", seconds)
    model, _evolver, events = grow_everything(max_cost=3.0, cost="seconds")
    count = [sum(p.numel() for p in m.parameters()) for m in (model, network())]
    assert len(events) == 1
    assert count[0] / count[1] <= 3.0
    assert set(seen) == {8}


def test_timing_a_step_changes_no_state():
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert budget._times_plain(model, "3", dyrep.ALL_BRANCHES, example()[0]) > 0
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("limit", "cost"), [(0.5, "flops"), (2.0, "watts")])
def test_a_senseless_limit_is_refused(limit, cost):
    with pytest.raises(ValueError, match=r"max_cost=0\.5|watts"):
        dyrep.DyRep(network(), max_cost=limit, cost=cost)


@pytest.mark.parametrize("room", [10, 10**9])
def test_a_conv_whose_branches_do_not_fit_into_memory_is_passed_over(room, monkeypatch):
    """The free memory is a stand-in, because it is known on a GPU only."""
    monkeypatch.setattr(budget, "headroom", lambda device: room)
    _, evolver, events = grow_everything()
    assert len(events) == (0 if room == 10 else 2)
    assert [("memory" in reason) for reason in evolver.left.values()] == [True] * (2 - len(events))


@pytest.mark.long
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (16, {}),
        (256, {}),
        (64, {"stride": 2}),
        (64, {"groups": 4}),
        (64, {"groups": 64}),
        (64, {"groups": 64, "stride": 2}),
        (64, {"padding": 0}),
        (64, {"padding": 2, "groups": 64}),
        (64, {"padding_mode": "reflect"}),
    ],
    ids=str,
)
def test_the_predicted_memory_is_the_memory_taken(channels, options):
    """The memory of a branch is what autograd keeps between forward and backward."""
    conv = nn.Conv2d(channels, channels, 3, **{"padding": 1, **options})
    x = torch.randn(4, channels, 12, 12, requires_grad=True)
    plain, outputs = held_values(lambda: conv(x)), conv(x).shape[2:]
    for names in [*([name] for name in fitting(conv, dyrep.ALL_BRANCHES)), dyrep.ALL_BRANCHES]:
        block = place_block(nn.Sequential(conv), "0", names)
        held = held_values(lambda block=block: block(x)) - plain
        predicted = 4 * budget.activation_values(block, (12, 12), outputs)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in block.modules())
        assert predicted <= held <= predicted + 4 * channels * norms, names


def held_values(run):
    """Return how many float32 values a forward allocates and keeps, except its output.

    The result is the median of three forwards, because kernels keep memory of their first run, and
    garbage of other tests may be freed meanwhile.
    """
    return statistics.median(one_forward(run) for _ in range(3))


def one_forward(run):
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profiler:
        output = run()
    held = sum(event.self_cpu_memory_usage for event in profiler.events())
    return held // 4 - output.numel()


def test_the_first_conv_of_the_ranking_that_fits_grows():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    evolver = dyrep.DyRep(model, max_cost=1.5)
    events = grow_at(evolver, "2")
    assert next(path for path, _ in events[0].saliency) == "2"
    assert events[0].layer != "2"
    assert "2" in evolver.left
