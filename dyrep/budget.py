"""Estimate the cost of growing a conv, and check it against limits: FLOPs, seconds, memory."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dyrep import surgery
from dyrep.base import Form, RepBlock
from dyrep.block import BatchNormBlock, called, fitting, place_block
from dyrep.branches import NormBranch, OneByOneAverage, OneByOneKxK, WindowConv
from dyrep.calibration import batch_statistics, run
from dyrep.cost import Cost, cost
from dyrep.fusion import plain_copy
from dyrep.geometry import Pair
from dyrep.recompute import is_cheap

Measure = Literal["flops", "seconds"]
ROUNDS = 5  # timed steps of each network, after one to warm up


class Budget:
    """A limit on the cost of a network, as a multiple of its plain form.

    Args:
        limit: Largest multiple, for example 1.5; None: limited by memory only.
        measure: `flops` of a forward, or `seconds` of forward and backward, timed side by side.
        form: Form of the blocks that convs would become.
    """

    def __init__(self, limit: float | None, measure: Measure, form: Form = "batchnorm") -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"max_cost={limit} is less than the plain network; use 1 or more")
        if measure not in ("flops", "seconds"):
            raise ValueError(f"cost {measure!r} is unknown; choose flops or seconds")
        self.limit, self.measure, self.form = limit, measure, form
        self.plain_flops: int | None = None

    def refusal(
        self,
        model: nn.Module,
        path: str,
        names: Sequence[str],
        batch: Tensor | None,
        optimizer: Optimizer | None,
    ) -> str | None:
        """Return the reason why the conv at `path` must not grow, or None; equal on every rank.

        Without a batch, no cost is counted, and only a conv that fits none of the branches is
        refused.
        """
        shape = None if batch is None else input_shapes(model, [path], batch).get(path)
        if batch is not None and shape is None:
            return "the network does not use it outside of training"
        if not set(fitting(_conv(model, path), names)) - {"kxk"}:
            return "it can take none of these branches"
        if batch is None or shape is None:
            return None
        missing = self._missing_bytes(model, path, names, shape, optimizer)
        if missing > 0:
            return f"out of memory: {missing / 2**20:.0f} MiB too few for a step"
        if self.limit is None:
            return None
        times = (
            self._flops(model, path, names, batch, shape)
            if self.measure == "flops"
            else slowest(_times_plain(model, path, names, batch, self.form))
        )
        if times > self.limit:
            return f"would cost {times:.2f} times the plain network (max_cost {self.limit:g})"
        return None

    def _flops(
        self, model: nn.Module, path: str, names: Sequence[str], batch: Tensor, shape: torch.Size
    ) -> float:
        if self.plain_flops is None:
            self.plain_flops = cost(plain_copy(model), batch).flops
        added = extra_cost(model, path, names, shape, self.form).flops
        return (cost(model, batch).flops + added) / self.plain_flops

    def _missing_bytes(
        self,
        model: nn.Module,
        path: str,
        names: Sequence[str],
        shape: torch.Size,
        optimizer: Optimizer | None,
    ) -> float:
        """Return the bytes that a step with the grown conv would lack, on the worst rank."""
        conv, block, example = _trial(model, path, names, shape, self.form)
        room = headroom(conv.weight.device)
        if room is None:
            return 0.0
        if isinstance(block, BatchNormBlock):
            outputs = conv(example[:1]).shape[2:]
            values = shape[0] * activation_values(block, (shape[2], shape[3]), outputs)
        else:
            values = block.kernel.numel()  # the composed kernel is kept
        state = optimizer.state.get(_conv(model, path).weight, {}) if optimizer else {}
        copies = 2 + sum(isinstance(v, Tensor) and v.ndim > 0 for v in state.values())
        parameters = cost(block, example).parameters - cost(conv, example).parameters
        return slowest((values + copies * parameters) * conv.weight.element_size() - room)


def input_shapes(model: nn.Module, paths: Iterable[str], batch: Tensor) -> dict[str, torch.Size]:
    """Return the input shape (N, C, H, W) of each layer when the model gets `batch`.

    A conv inside a linear block has the input shape of the block.
    """
    found: dict[str, torch.Size] = {}
    handles = [
        model.get_submodule(called(model, path)).register_forward_pre_hook(
            lambda _, args, path=path: found.update({path: args[0].shape})
        )
        for path in paths
    ]
    try:
        with batch_statistics(model), torch.no_grad():
            run(model, batch[:2])
    finally:
        for handle in handles:
            handle.remove()
    return {path: torch.Size([len(batch), *shape[1:]]) for path, shape in found.items()}


def extra_cost(
    model: nn.Module,
    path: str,
    names: Sequence[str],
    shape: torch.Size,
    form: Form = "batchnorm",
) -> Cost:
    """Return the parameters and FLOPs per image that growing a conv adds."""
    conv, block, example = _trial(model, path, names, shape, form)
    plain, grown = cost(conv, example), cost(block, example)
    return Cost(grown.parameters - plain.parameters, grown.flops - plain.flops)


def activation_values(block: BatchNormBlock, inputs: Pair, outputs: Pair) -> int:
    """Return the number of values per image that a block keeps for backward beyond its conv.

    A branch that cannot leave its padding or cropping to a conv or a pooling keeps a padded copy.

    Args:
        block: The block.
        inputs: Height and width of its input.
        outputs: Height and width of its output.
    """
    g, positions = block.geometry, math.prod(inputs)
    at_output = math.prod(outputs) * g.out_channels

    def kept(branch: NormBranch) -> int:
        if isinstance(branch, WindowConv):
            # the conv alone would keep the copy of kxk, too
            copy = 0 if branch is block.kxk else g.window_copy(branch.size, branch.offset, inputs)
            return copy * g.in_channels + (0 if is_cheap(branch.conv) else at_output)
        if isinstance(branch, OneByOneKxK):
            copy = g.window_copy(g.kernel_size, (0, 0), inputs)
            unpadded = positions if copy and g.padding_mode != "zeros" else 0  # the pad keeps it
            inner = 0 if is_cheap(branch.reduce) else positions
            return (copy + unpadded + inner) * branch.inner_norm.num_features + at_output
        if isinstance(branch, OneByOneAverage):
            copy = g.average_copy(inputs) * g.out_channels
            if branch.reduce is None:
                return copy + at_output  # the pooled input, which the norm needs
            return copy + (0 if is_cheap(branch.reduce) else positions * g.out_channels)
        height, width = g.margins((1, 1), g.centre)
        return at_output if any(height + width) else 0  # identity, which pads or crops

    return sum(kept(branch) for branch in [block.kxk, *block.others()])


def headroom(device: torch.device) -> int | None:
    """Return the GPU memory in bytes that no step so far has used; None on other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)


def _trial(
    model: nn.Module, path: str, names: Sequence[str], shape: torch.Size, form: Form
) -> tuple[nn.Conv2d, RepBlock, Tensor]:
    """Return two copies of the conv, plain and grown, and an input that takes no memory."""
    conv = _conv(model, path)
    holder = nn.Sequential(copy.deepcopy(conv))
    block = place_block(holder, "0", names, fixed=form == "linear", form=form)
    return copy.deepcopy(conv), block, conv.weight.detach().new_zeros(1).expand(shape)


def _conv(model: nn.Module, path: str) -> nn.Conv2d:
    conv = model.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _times_plain(
    model: nn.Module,
    path: str,
    names: Sequence[str],
    batch: Tensor,
    form: Form = "batchnorm",
) -> float:
    """Return the time of a step with the grown conv, as a multiple of the plain network's."""
    conv = model.get_submodule(path)
    plain = plain_copy(model)
    place_block(model, path, names, fixed=form == "linear", form=form)
    try:
        rounds = range(1 + ROUNDS)
        ratios = [step_seconds(model, batch) / step_seconds(plain, batch) for _ in rounds]
    finally:
        surgery.replace(model, path, conv)
    return statistics.median(ratios[1:])


def step_seconds(model: nn.Module, batch: Tensor) -> float:
    """Time a forward and backward; gradients and statistics stay as they were."""
    weights = [p for p in model.parameters() if p.requires_grad]
    with batch_statistics(model), torch.enable_grad():
        _synchronise(batch.device)
        start = time.perf_counter()
        torch.autograd.grad(model(batch).float().sum(), weights, allow_unused=True)
        _synchronise(batch.device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def slowest(value: float) -> float:
    """Return the largest value over all ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    device = torch.accelerator.current_accelerator() if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return float(shared)
