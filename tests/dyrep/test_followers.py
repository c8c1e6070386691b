"""Test that optimizers, schedules and averages follow when a network grows or is cut."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import dyrep
from dyrep import pruning, surgery
from dyrep.proof import relative_error
from dyrep.saliency import SCORES
from tests.dyrep.networks import (
    batches,
    example,
    groups,
    grow_at,
    grown,
    network,
    optimizer_for,
    step,
)

pytestmark = pytest.mark.long

OPTIMIZERS = {
    "sgd": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9),
    "fused sgd": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda g: torch.optim.AdamW(g, lr=1e-3),
    "amsgrad": lambda g: torch.optim.Adam(g, lr=1e-3, amsgrad=True),
    "rmsprop": lambda g: torch.optim.RMSprop(g, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda g: torch.optim.Adagrad(g, lr=1e-2),
    "nadam": lambda g: torch.optim.NAdam(g, lr=1e-3),
    "rprop": lambda g: torch.optim.Rprop(g, lr=1e-3),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_growing_keeps_momenta_and_adds_parameters_to_the_optimizer(kind):
    """The published code drops the momentum of the grown conv."""
    model = network()
    optimizer = OPTIMIZERS[kind](groups(model))
    evolver = dyrep.DyRep(model, optimizer)
    step(model, optimizer, evolver)
    before = {p: copy.deepcopy(dict(s)) for p, s in optimizer.state.items()}
    weight, bias = model[3].weight, model[3].bias
    grow_at(evolver, "3")
    assert model[3].kernel is weight
    assert model[3].kxk.norm.bias is bias
    for parameter in (weight, bias):
        for key, value in before[parameter].items():
            now = torch.as_tensor(optimizer.state[parameter][key])
            assert torch.equal(now, torch.as_tensor(value)), key
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(model.parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0.0]
    assert all(p.ndim > 1 for p in optimizer.param_groups[0]["params"])
    new = model[3].branches["1x1"].conv.weight.clone()
    step(model, optimizer, evolver)
    assert not torch.equal(model[3].branches["1x1"].conv.weight, new)


def test_cutting_drops_the_state_of_cut_parameters_and_keeps_the_rest():
    model, optimizer, _ = grown()
    step(model, optimizer)
    weight, gone = model[3].kernel, model[3].branches["1x1"].conv.weight
    momentum = optimizer.state[weight]["momentum_buffer"].clone()
    before = dict(model.named_parameters())
    pruning.cut(model, "3", [n for n in model[3].names if n != "kxk"], batches())
    surgery.follow(optimizer, model, before)
    assert type(model[3]) is nn.Conv2d
    assert gone not in optimizer.state
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(model.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_an_optimizer_with_one_group_is_enough(decay):
    """The published code fails on an optimizer without weight decay."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    evolver = dyrep.DyRep(model, optimizer)
    step(model, optimizer, evolver)
    evolver.adjust(batches())
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_new_parameters_join_the_group_of_their_layer_by_name():
    model = network()
    layers = {"stem": model[:3], "body": model[3:]}
    named = [
        {"params": list(layer.named_parameters(prefix=name)), "lr": lr}
        for (name, layer), lr in zip(layers.items(), (0.1, 0.2), strict=True)
    ]
    optimizer = torch.optim.SGD(named, lr=0.1, momentum=0.9)
    evolver = dyrep.DyRep(model, optimizer)
    grow_at(evolver, "3")
    stem, body = optimizer.param_groups
    assert set(stem["params"]) == set(layers["stem"].parameters())
    assert set(body["params"]) == set(model[3:].parameters())
    assert len(body["param_names"]) == len(body["params"])
    assert "3.branches.1x1.conv.weight" in body["param_names"]


def test_a_part_that_is_not_optimized_stays_out_of_the_optimizer():
    model = network()
    optimizer = torch.optim.SGD(model[3:].parameters(), lr=0.1)
    other = nn.Parameter(torch.zeros(2))
    optimizer.add_param_group({"params": [other]})
    grow_at(dyrep.DyRep(model, optimizer), "0")
    assert {p for g in optimizer.param_groups for p in g["params"]} == {
        *model[3:].parameters(),
        other,
    }


def test_a_schedule_changes_the_rates_of_all_parameters():
    model = network()
    optimizer = optimizer_for(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    grow_at(dyrep.DyRep(model, optimizer), "3")
    step(model, optimizer)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_average_grows_and_is_cut_too_and_keeps_its_function(use_buffers):
    """The published average pairs state dicts by position, which a growth changes."""
    model = network().double()
    optimizer = optimizer_for(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    x = example(50)[0].double()
    evolver = dyrep.DyRep(model, optimizer, ema=average)

    def train(steps):
        model.train()
        for seed in range(steps):
            images, labels = example(seed)
            nn.functional.cross_entropy(model(images.double()), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)

    train(4)
    before = average.eval()(x)
    assert relative_error(before, model.eval()(x)) > 1e-3  # the average lags behind
    grow_at(evolver, "3")
    assert relative_error(before, average.eval()(x)) < 1e-10
    train(4)
    with torch.no_grad():  # make two branches weak
        for network_ in (model, average.module):
            for name, share in {"1x1": 0.9, "1x1_avg": 1e-3, "kx1": 1e-3}.items():
                kxk = network_[3].kxk.norm.weight.abs().mean()
                network_[3].branches[name].norm.weight.fill_(share * kxk)
    before = average.eval()(x)
    events = grow_at(evolver, "0")
    assert [event.action for event in events] == ["grow", "cut"]
    assert average.module[3].names == model[3].names
    assert "kx1" not in model[3].names
    assert relative_error(before, average.eval()(x)) < 1e-10
    train(2)


def test_gradients_under_a_scaler_count_unscaled():
    """The published code ranks by scaled gradients, so one overflow decides the ranking."""
    scores = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model = network()
        evolver = dyrep.DyRep(model)
        x, y = example()
        loss = nn.functional.cross_entropy(model(x), y)
        (scaler.scale(loss) if scaler else loss).backward()
        evolver.accumulate(scaler)
        model[0].weight.grad.fill_(float("inf"))  # an overflow: the scaler skips this step
        evolver.accumulate(scaler)
        scores.append(dict(evolver.adjust(batches())[0].saliency))
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)


def test_accumulated_gradients_count_as_one_step():
    whole, halves = network(norm=False), network(norm=False)
    x, y = example()
    nn.functional.cross_entropy(whole(x), y).backward()
    for part in (slice(0, 8), slice(8, 16)):
        (nn.functional.cross_entropy(halves(x[part]), y[part]) / 2).backward()
    scores = []
    for model in (whole, halves):
        evolver = dyrep.DyRep(model)
        evolver.accumulate()
        scores.append(dict(evolver.adjust(batches())[0].saliency))
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)


def test_saliency_of_bfloat16_weights_is_summed_in_float32():
    model = network().bfloat16()
    evolver = dyrep.DyRep(model, saliency="snip")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    for _ in range(1000):
        evolver.accumulate()
    sums = evolver.state_dict()["saliency"]["sums"]
    weight = model[0].weight.float()
    expected = 1000 * (weight * model[0].weight.grad.float()).abs().sum()
    assert sums.dtype == torch.float32
    assert sums[0] == pytest.approx(expected.item(), rel=1e-3)


class NoReading(TorchDispatchMode):
    """A mode that fails if the host reads the value of a tensor: on a GPU the host would wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "read by the host"
        assert "c10d" not in str(func), f"{func} is a collective"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("score", SCORES)
def test_accumulating_a_score_reads_nothing_on_the_host(score):
    """The published code reads four values and reduces one, for each conv at each step."""
    model = network()
    evolver = dyrep.DyRep(model, saliency=score)
    x, y = example()
    nn.functional.cross_entropy(model(x), y).backward()
    with NoReading():
        evolver.accumulate(torch.amp.GradScaler("cpu"))
        evolver.accumulate()
        with pytest.raises(AssertionError, match="read by the host"):
            evolver.state_dict()["saliency"]["steps"].item()
