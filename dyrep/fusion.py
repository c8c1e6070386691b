"""Folding all branches of a network into plain convolutions, with proof."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dyrep import surgery
from dyrep.block import RepBlock, outer_blocks


class FusionError(ArithmeticError):
    """The fused network differs from the original; names the worst block and its error."""


@torch.no_grad()
def fuse(model: nn.Module, tolerance: float = 1e-9, inputs: Tensor | None = None) -> nn.Module:
    """Return the plain network: a new module of the original classes, in eval mode.

    The original is untouched. Every block is compared with its conv in float64, on what it
    receives from `inputs` (a batch of the model), or on noise without; with `inputs` the scores
    are compared too. Errors are relative to the largest value.

    Raises:
        FusionError: a block, or the network, is off by more than `tolerance`.
    """
    surgery.refuse_wrapped(model)
    reference = copy.deepcopy(model).double().eval()
    fused = copy.deepcopy(model).eval()
    exact = copy.deepcopy(model).double().eval()
    for network in (fused, exact):
        for path, block in outer_blocks(network).items():
            surgery.replace(network, path, block.fuse().eval())
    errors = block_errors(reference, exact, inputs)
    worst = max(errors, key=lambda path: _rank(errors[path]), default="")
    if errors and not errors[worst] <= tolerance:
        raise FusionError(f"{worst} differs by {errors[worst]:.1e} (allowed {tolerance:.1e})")
    if inputs is not None:
        total = relative_error(reference(inputs.double()), exact(inputs.double()))
        if not total <= tolerance:
            raise FusionError(
                f"the scores differ by {total:.1e} (allowed {tolerance:.1e}); worst block: {worst}"
            )
    return fused


def block_errors(reference: nn.Module, fused: nn.Module, inputs: Tensor | None) -> dict[str, float]:
    """Return the relative error of the conv that took the place of each block."""
    outer = outer_blocks(reference)
    received = _received(reference, outer, inputs) if inputs is not None else {}
    errors = {}
    for path, block in outer.items():
        x = received.get(path, _noise(block))
        errors[path] = relative_error(block(x), fused.get_submodule(path)(x))
    return errors


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Return max |expected - actual| / max |expected|."""
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((expected - actual).abs().max() / largest).item()


def _received(model: nn.Module, outer: dict[str, RepBlock], inputs: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        block.register_forward_pre_hook(lambda _, args, path=path: found.update({path: args[0]}))
        for path, block in outer.items()
    ]
    try:
        model(inputs.double())
    finally:
        for handle in handles:
            handle.remove()
    return found


def _noise(block: RepBlock) -> Tensor:
    g = block.geometry
    sides = [d * (k - 1) + 8 for k, d in zip(g.kernel_size, g.dilation, strict=True)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, g.in_channels, *sides, dtype=torch.float64, generator=generator)
    return noise.to(block._weight().device)


def _rank(error: float) -> float:
    return float("inf") if error != error else error  # not-a-number is the worst error
