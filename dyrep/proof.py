"""Compare a fused network with its original: block by block, and at the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dyrep.base import RepBlock
from dyrep.block import outer_blocks
from dyrep.calling import Inputs, call, mapped, tensors
from dyrep.geometry import Geometry


class FusionError(ArithmeticError):
    """The fused network differs from the original, or holds values that are not finite.

    The message names the worst block and the error, or the values.
    """


@torch.no_grad()
def compare_blocks(
    reference: nn.Module, fused: nn.Module, inputs: Inputs | None
) -> tuple[dict[str, float], Any]:
    """Return the relative error of each fused block, by path, and the scores of the reference.

    Blocks are compared while the reference runs, so that no activations need to be kept.

    Args:
        reference: A network with blocks, float64, in eval mode.
        fused: The same network without blocks, its batch norms not folded.
        inputs: A batch; None compares on noise and returns no scores.
    """
    outer = outer_blocks(reference)
    errors: dict[str, float] = {}

    def comparing(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def compare(_: nn.Module, arguments: tuple[Tensor, ...], expected: Tensor) -> None:
            error = relative_error(expected, fused.get_submodule(path)(*arguments))
            errors[path] = max(error, errors.get(path, error), key=rank)

        return compare

    handles = [block.register_forward_hook(comparing(path)) for path, block in outer.items()]
    try:
        outputs = None if inputs is None else _run_exactly(reference, inputs)
        for path, block in outer.items():
            if path not in errors:
                block(noise(block))
    finally:
        for handle in handles:
            handle.remove()
    return {path: errors[path] for path in outer}, outputs


def _run_exactly(reference: nn.Module, inputs: Inputs) -> Any:
    try:
        return call(reference, mapped(inputs, lambda t: t.double()))
    except FusionError:
        raise
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"this network cannot run on these inputs in float64 ({error}); fuse without inputs "
            "compares each block alone"
        ) from error


def scores_error(expected: Any, actual: Any) -> float:
    """Return the largest relative error over the tensors that a network returned.

    Only tensors of real or complex numbers count. If there are none, the result is the share of
    differing values in the other tensors.

    Raises:
        ValueError: the network returned no tensor.
    """
    pairs = list(zip(tensors(expected), tensors(actual), strict=True))
    if not pairs:
        kind = type(expected).__name__
        raise ValueError(
            f"this network returns no tensor that could be compared, but {kind}; leave inputs out"
        )
    numbers = [relative_error(e, a) for e, a in pairs if e.is_floating_point() or e.is_complex()]
    others = [(e != a).double().mean().item() if e.numel() else 0.0 for e, a in pairs]
    return max(numbers or others, key=rank)


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Return max |expected - actual| / max |expected|; equal infinities differ by zero.

    Infinite values do not count in the denominator: scores may be masked with them.
    """
    if not expected.numel():
        return 0.0
    off = torch.where(expected == actual, 0.0, (expected - actual).abs())
    sizes = expected.abs().where(expected.isfinite(), 0.0)
    return (off.max() / sizes.max().clamp(min=torch.finfo(expected.dtype).tiny)).item()


def noise(layer: nn.Module) -> Tensor:
    """Return random inputs for a block or a conv, of its dtype and on its device."""
    if isinstance(layer, RepBlock):
        g, weight = layer.geometry, layer.kernel.detach()
    else:
        assert isinstance(layer, nn.Conv2d)
        g, weight = Geometry.of(layer), layer.weight.detach()
    sides = [d * (k - 1) + 8 for k, d in zip(g.kernel_size, g.dilation, strict=True)]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, g.in_channels, *sides, dtype=torch.float64, generator=generator)
    return drawn.to(weight)


def rank(error: float) -> float:
    """Return the error for sorting: not-a-number is the worst."""
    return float("inf") if error != error else error
