"""Parameters and FLOPs of a network as it stands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """`parameters` of the network; `flops` of one forward per image (a multiply-add counts 2)."""

    parameters: int
    flops: int


@torch.no_grad()
def cost(model: nn.Module, example: Tensor) -> Cost:
    """Count on the first image of an example batch, in eval mode; the model is left as it was."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            model(example[:1])
    finally:
        for module, flag in flags.items():
            module.training = flag
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops())
