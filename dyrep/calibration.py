"""Measure statistics of activations over given batches, without changing the model.

Batch norms normalise by each batch, as in training, but their running statistics, their momentum
and all train/eval flags are restored. Variances are pooled over batches and ranks including the
variance of the means. Averaging the variances alone would be wrong if the means of batches or ranks
differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass
class Moments:
    """Mean and variance (channels,) in float64 of `count` values per channel."""

    count: Tensor
    mean: Tensor
    var: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Return the moments per channel of (N, C, ...)."""
        dims = [0, *range(2, x.ndim)]
        var, mean = torch.var_mean(
            x.detach().float() if x.dtype != torch.float64 else x, dims, correction=0
        )
        count = torch.tensor(float(x.numel() // x.shape[1]), dtype=torch.float64, device=x.device)
        return cls(count, mean.double(), var.double())

    def merged(self, other: Moments) -> Moments:
        """Return the moments of both sets of values together (Chan et al. 1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        spread = delta**2 * (self.count * other.count / count)
        return Moments(
            count, mean, (self.var * self.count + other.var * other.count + spread) / count
        )


def checked(batches: Iterable[Tensor]) -> list[Tensor]:
    """Return calibration batches as a list.

    Raises:
        TypeError: `batches` is a tensor or a dict, or a batch is not a tensor.
        ValueError: there is no batch, or a batch is empty or holds values that are not finite.
    """
    if isinstance(batches, Tensor):
        raise TypeError("calibration is a list of batches; for a single one write [batch]")
    if isinstance(batches, Mapping):
        raise TypeError("calibration is a list of batches, not a dict: list(batches.values())")
    found = list(batches)
    if not found:
        raise ValueError("calibration needs at least one batch")
    for index, batch in enumerate(found):
        if not isinstance(batch, Tensor):
            raise TypeError(
                f"calibration batch {index} is a {type(batch).__name__}; it has to be the one "
                "tensor that the model is called with"
            )
        if not batch.numel():
            raise ValueError(f"calibration batch {index} is empty: its shape is {[*batch.shape]}")
        if not batch.isfinite().all():
            raise ValueError(f"calibration batch {index} holds values that are not finite")
    return found


def moments(
    model: nn.Module, targets: Sequence[nn.Module], batches: Iterable[Tensor]
) -> list[Moments]:
    """Return the moments of the inputs of each target module over the batches.

    Collective if torch.distributed is initialised: each rank brings batches of its own, the same
    number on each, and every rank gets the same result.

    Raises:
        ValueError: the input of a target is not finite, or has no variance.
    """
    found: dict[nn.Module, Moments] = {}
    calls = 0
    needed: int | None = None

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal calls
        seen = Moments.of(inputs[0])
        found[module] = found[module].merged(seen) if module in found else seen
        calls += 1
        if calls == needed:
            raise _Seen

    if not targets:
        return []
    handles = [target.register_forward_pre_hook(watch) for target in targets]
    try:
        with batch_statistics(model), torch.no_grad():
            for batch in batches:
                calls = 0
                with suppress(_Seen):
                    run(model, batch)
                needed = calls  # later batches run only as far as the last target
    finally:
        for handle in handles:
            handle.remove()
    return [_finite(model, target, _over_ranks(found[target])) for target in targets]


def _finite(model: nn.Module, target: nn.Module, seen: Moments) -> Moments:
    if not (seen.mean.isfinite().all() and seen.var.isfinite().all()):
        path = next(path for path, module in model.named_modules() if module is target)
        raise ValueError(
            f"what {path} receives from the calibration batches is not finite: one of them is out "
            "of range, or the weights are; the network is left as it was"
        )
    return seen


def run(model: nn.Module, batch: Tensor) -> None:
    """Run a model on a batch with batch statistics.

    Raises:
        ValueError: a batch norm gets one value per channel, which has no variance.
    """
    try:
        model(batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"a calibration batch of shape {[*batch.shape]} gives a batch norm one value per "
            "channel, of which there is no variance: use larger batches or images"
        ) from error


class _Seen(Exception):
    """Raised once every target has received its input."""


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Run the model as in training, without dropout and without changing any state.

    Batch norms normalise by the batch; momentum 0 keeps their running statistics bit for bit.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    flags = {m: m.training for m in model.modules()}
    momenta = [norm.momentum for norm in norms]
    counters = [_copy(norm.num_batches_tracked) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 0.0
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not call hooks
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum = momentum
            if counter is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(counter)


def _copy(counter: Tensor | None) -> Tensor | None:
    return None if counter is None else counter.clone()


def calibrate(
    model: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Tensor]
) -> list[Moments]:
    """Set the running statistics of batch norms from the batches; return the moments."""
    found = moments(model, norms, batches)
    for norm, seen in zip(norms, found, strict=True):
        set_statistics(norm, seen)
    return found


def set_statistics(norm: _BatchNorm, seen: Moments) -> None:
    """Set the running statistics of a batch norm (unbiased variance, as in torch)."""
    assert norm.running_mean is not None and norm.running_var is not None
    unbiased = seen.var * seen.count / (seen.count - 1).clamp(min=1)
    norm.running_mean.copy_(seen.mean)
    norm.running_var.copy_(unbiased)


def _over_ranks(mine: Moments) -> Moments:
    """Merge the moments of all ranks in rank order, so that every rank gets the same bits."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return mine
    packed = torch.stack([mine.count.expand_as(mine.mean), mine.mean, mine.var])
    gathered = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, packed)
    merged = Moments(gathered[0][0][0], gathered[0][1], gathered[0][2])
    for other in gathered[1:]:
        merged = merged.merged(Moments(other[0][0], other[1], other[2]))
    return merged
