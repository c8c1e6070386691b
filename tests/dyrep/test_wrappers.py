"""Test that compiled networks follow a change, and other wrappers are rebuilt with their hooks."""

import copy

import pytest
import torch
from torch import nn

import dyrep
from dyrep.proof import relative_error
from tests.dyrep.networks import (
    example,
    grow_at,
    network,
    optimizer_for,
)
from tests.launcher import in_ranks

pytestmark = pytest.mark.long


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_network_follows_growth(in_place):
    model = network()
    if in_place:
        model.compile(backend="aot_eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="aot_eager")
    optimizer = optimizer_for(model)
    evolver = dyrep.DyRep(model, optimizer)
    x, y = example()
    for path in ("3", "0"):
        model.train()
        nn.functional.cross_entropy(compiled(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        before = compiled(x)
        grow_at(evolver, path)
        model.eval()
        assert relative_error(before, compiled(x)) < 1e-4
    assert len(dyrep.structure(model)["blocks"]) == 2
    gradient = {}
    for which in ("compiled", "eager"):
        copied = copy.deepcopy(model.train())
        run = torch.compile(copied, backend="aot_eager") if which == "compiled" else copied
        nn.functional.cross_entropy(run(x), y).backward()
        gradient[which] = copied[3].branches["1x1_kxk"].reduce.weight.grad
    assert relative_error(gradient["eager"], gradient["compiled"]) < 1e-4


def test_the_result_of_torch_compile_is_refused_with_the_cure():
    with pytest.raises(TypeError, match=r"torch\.compile"):
        dyrep.DyRep(torch.compile(network(), backend="eager"))


REWRAP = """
import os, torch, torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel as DDP
import dyrep
from tests.dyrep.networks import batches, example, network, optimizer_for
dist.init_process_group("gloo")
model = network()
optimizer = optimizer_for(model)
ddp = DDP(model, gradient_as_bucket_view=True)
called = []
def hook(state, bucket):
    called.append(bucket.buffer().numel())
    return bf16_compress_hook(state, bucket)
ddp.register_comm_hook(None, hook)
evolver = dyrep.DyRep(model, optimizer, form="FORM")
for epoch in range(3):
    for seed in range(2):
        x, y = example(10 * epoch + seed + 100 * dist.get_rank())
        nn.functional.cross_entropy(ddp(x), y).backward()
        evolver.accumulate()
        optimizer.step()
        optimizer.zero_grad()
    reduced = sum(called) // 2
    assert reduced == sum(p.numel() for p in model.parameters()), (reduced, epoch)
    called.clear()
    evolver.adjust(batches())
    ddp = dyrep.rewrap(ddp)
    assert ddp.gradient_as_bucket_view and not ddp.find_unused_parameters
for parameter in model.parameters():
    parts = [torch.empty_like(parameter) for _ in range(2)]
    dist.all_gather(parts, parameter.detach())
    assert torch.equal(*parts)
dist.barrier()  # a rank that leaves early breaks the connection of the other
print("kept", flush=True)
os._exit(0)  # gloo's threads sometimes abort a process that takes its group down
"""


@pytest.mark.parametrize("form", ["batchnorm", "linear"])
def test_a_wrapper_is_rebuilt_with_its_hooks(form, tmp_path):
    """Every parameter is reduced once per step through the user's hook, before and after growing."""
    (tmp_path / "worker.py").write_text(REWRAP.replace("FORM", form))
    done = in_ranks(tmp_path / "worker.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kept") == 2
