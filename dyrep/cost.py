"""Count the parameters and FLOPs of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """`parameters` of the network; `flops` of one forward per image (a multiply-add counts 2).

    Work that a forward does once per batch, as linear blocks compose their kernels, is divided by
    the number of images in the example.
    """

    parameters: int
    flops: int


@torch.no_grad()
def cost(model: nn.Module, example: Tensor) -> Cost:
    """Count on an example batch (N, C, H, W), in eval mode; the model is unchanged."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        one = _flops(model, example[:1])
        once = 2 * one - _flops(model, example[:2]) if len(example) > 1 else 0
    finally:
        for module, flag in flags.items():
            module.training = flag
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, one - once + once // len(example))


def _flops(model: nn.Module, images: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    counter = FlopCounterMode(display=False)
    with counter:
        model(images)
    return counter.get_total_flops()
