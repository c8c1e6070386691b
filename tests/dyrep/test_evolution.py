"""Test DyRep in a training loop: ranking, due epochs, optimizer, checkpoints, several ranks."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import dyrep
from dyrep import surgery
from dyrep.saliency import Saliency
from tests.dyrep.networks import batches, example, network, optimizer_for, step
from tests.launcher import in_ranks


def test_due_counts_epochs_from_zero_as_published():
    evolver = dyrep.DyRep(network(), adjust_interval=5, last_adjust_epoch=12)
    assert [epoch for epoch in range(30) if evolver.due(epoch)] == [4, 9]


def test_snip_is_the_mean_over_steps_of_the_sum_of_gradient_times_weight():
    model = network()
    saliency = Saliency("snip")
    saliency.watch({"0": model[0]})
    expected = 0.0
    for seed in (1, 2):
        model[0].weight.grad = torch.randn(
            6, 3, 3, 3, generator=torch.Generator().manual_seed(seed)
        )
        expected += (model[0].weight.grad * model[0].weight).abs().sum().item() / 2
        saliency.accumulate()
    ((path, score),) = saliency.ranking(torch.Generator())
    assert path == "0"
    assert score == pytest.approx(expected, rel=1e-5)


def test_a_step_whose_gradients_overflowed_is_left_out():
    model = network()
    saliency = Saliency("grad_norm")
    saliency.watch({"0": model[0]})
    model[0].weight.grad = torch.ones(6, 3, 3, 3)
    saliency.accumulate()
    model[0].weight.grad = torch.full((6, 3, 3, 3), float("inf"))
    saliency.accumulate()
    ((_, score),) = saliency.ranking(torch.Generator())
    assert score == pytest.approx((6 * 3 * 9) ** 0.5)


def test_the_most_salient_conv_grows():
    model = network()
    evolver = dyrep.DyRep(model, optimizer_for(model))
    model[0].weight.grad = torch.full_like(model[0].weight, 1e-3)
    model[3].weight.grad = torch.full_like(model[3].weight, 10.0)
    evolver.accumulate()
    (event,) = evolver.adjust(batches())
    assert (event.action, event.layer) == ("grow", "3")
    assert [path for path, _ in event.saliency] == ["3", "0"]
    assert event.error_eval < 1e-5
    assert event.flops > dyrep.cost(network(), batches()[0]).flops
    json.dumps(event.to_dict())


def test_a_training_resumed_after_an_adjustment_has_the_same_bits():
    model = network()
    optimizer = optimizer_for(model)
    evolver = dyrep.DyRep(model, optimizer, adjust_interval=1)
    for seed in range(3):
        step(model, optimizer, evolver, seed)
    evolver.adjust(batches())
    for seed in range(3):
        step(model, optimizer, evolver, seed)
    state = copy.deepcopy(
        [dyrep.structure(model), model.state_dict(), optimizer.state_dict(), evolver.state_dict()]
    )
    other = network()
    dyrep.apply_structure(other, json.loads(json.dumps(state[0])))
    other.load_state_dict(state[1], strict=True)
    other_optimizer = optimizer_for(other)
    other_optimizer.load_state_dict(state[2])
    other_evolver = dyrep.DyRep(other, other_optimizer, adjust_interval=1)
    other_evolver.load_state_dict(state[3])
    for m, o, e in ((model, optimizer, evolver), (other, other_optimizer, other_evolver)):
        for seed in range(2):
            step(m, o, e, seed)
        e.adjust(batches())
        step(m, o, e, 9)
    assert dyrep.structure(model) == dyrep.structure(other)
    ours, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_structure_is_replayed_from_scratch():
    """A network with the final structure can be trained from fresh weights."""
    model = network()
    evolver = dyrep.DyRep(model, optimizer_for(model), grow=2)
    step(model, evolver.optimizer, evolver)
    evolver.adjust(batches())
    fresh = network()
    dyrep.apply_structure(fresh, json.loads(json.dumps(dyrep.structure(model))))
    optimizer = optimizer_for(fresh)
    x, y = example(count=64)
    losses = []
    for _ in range(30):
        losses.append(nn.functional.cross_entropy(fresh(x), y))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]
    assert dyrep.structure(fresh) == dyrep.structure(model)
    dyrep.fuse(fresh, inputs=x)


def test_gain_is_the_squared_gradient_per_input():
    model = network()
    saliency = Saliency("gain")
    saliency.watch({"3": model[3]})
    model[3].weight.grad = torch.randn_like(model[3].weight)
    saliency.accumulate()
    ((_, score),) = saliency.ranking(torch.Generator())
    assert score == pytest.approx(model[3].weight.grad.pow(2).sum().item() / 54, rel=1e-5)


def test_gain_per_flop_prefers_the_cheaper_of_two_layers_with_equal_gain():
    wide = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for conv in (wide[0], wide[2]):  # both get the same gain
        size = conv.weight[0].numel() ** 0.5 / conv.weight.numel() ** 0.5
        conv.weight.grad = torch.full_like(conv.weight, size)
    evolver = dyrep.DyRep(wide, saliency="gain_per_flop")
    evolver.accumulate()
    (event,) = evolver.adjust(batches())
    assert event.layer == "0"
    assert event.saliency[0][1] > 2 * event.saliency[1][1]


def test_checkpoints_load_without_running_code(tmp_path):
    model = network()
    evolver = dyrep.DyRep(model, optimizer_for(model))
    step(model, evolver.optimizer, evolver)
    torch.save({"evolver": evolver.state_dict(), "s": dyrep.structure(model)}, tmp_path / "c.pt")
    torch.load(tmp_path / "c.pt", weights_only=True)


def test_a_wrapped_model_is_refused_with_the_cure():
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self):
            nn.Module.__init__(self)

    with pytest.raises(TypeError, match=r"ddp\.module"):
        surgery.refuse_wrapped(Wrapped())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="snip"):
        dyrep.DyRep(network(), saliency="snap")
    with pytest.raises(ValueError, match="1x1"):
        dyrep.DyRep(network(), branches=["kxk", "2x2"])


@pytest.mark.long
def test_importing_dyrep_imports_nothing_but_torch():
    code = """
import sys, torch, torch.utils.flop_counter
before = set(sys.modules)
import dyrep
print(*set(sys.modules) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= {"dyrep", "torch"}


WORKER = """
import os, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
import dyrep
from tests.dyrep.networks import network, optimizer_for
dist.init_process_group("gloo")
rank = dist.get_rank()
model = network()
optimizer = optimizer_for(model)
evolver = dyrep.DyRep(model, optimizer, adjust_interval=1)
for epoch in range(3):
    ddp = DDP(model)
    for step in range(3):
        torch.manual_seed(100 * rank + 10 * epoch + step)
        torch.nn.functional.cross_entropy(ddp(torch.randn(8, 3, 8, 8)), torch.arange(8) % 4).backward()
        evolver.accumulate(); optimizer.step(); optimizer.zero_grad()
    del ddp
    evolver.adjust([torch.randn(8, 3, 8, 8) + rank for _ in range(2)])
parts = [None, None]
mine = (dyrep.structure(model), {k: v for k, v in model.named_parameters()})
dist.all_gather_object(parts, mine)
assert parts[0][0] == parts[1][0] and len(parts[0][0]["blocks"]) == 3, parts[0][0]
assert all(torch.equal(v, parts[1][1][k]) for k, v in parts[0][1].items())
stats = [v for k, v in model.named_buffers() if ".norm.running" in k]
assert stats
dist.barrier()  # a rank that leaves early breaks the connection of the other
print("same", flush=True)
os._exit(0)  # gloo's threads sometimes abort a process that takes its group down
"""


@pytest.mark.long
def test_two_ranks_grow_the_same_bits(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    done = in_ranks(tmp_path / "worker.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 2
