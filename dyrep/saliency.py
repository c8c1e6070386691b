"""Scores that say which convolution deserves branches, summed while training.

    synflow     sum(g * w), signed, as published. Zero in exact arithmetic for a conv followed by
                batch norm (its output does not depend on the scale of the weight), so what it
                ranks there is rounding; offered to reproduce published runs.
    snip        sum |g * w|   (Lee et al., ICLR 2019)
    grad_norm   ||g||_2
    random      noise, the baseline

Scores are taken from `weight.grad` after backward, in float32 on the device; nothing is read by
the host and no rank talks to another before `ranking`. With a GradScaler, call `unscale_` first;
steps with overflowed gradients are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Score = Callable[[Tensor, Tensor], Tensor]

SCORES: dict[str, Score] = {
    "synflow": lambda g, w: (g * w).sum(),
    "snip": lambda g, w: torch.linalg.vector_norm(g * w, 1),
    "grad_norm": lambda g, w: torch.linalg.vector_norm(g),
    "random": lambda g, w: g.new_zeros(()),
}


class Saliency:
    """Sums of a score over the steps of an interval, one per watched conv."""

    def __init__(self, name: str) -> None:
        if name not in SCORES:
            raise ValueError(f"saliency {name!r} is unknown; choose from {', '.join(SCORES)}")
        self.name = name
        self.per_flop = False
        self._paths: list[str] = []
        self._weights: list[Tensor] = []
        self._sums: Tensor | None = None
        self._steps: Tensor | None = None

    def watch(self, convs: dict[str, nn.Conv2d]) -> None:
        """Start anew with these convs."""
        self._paths = list(convs)
        self._weights = [conv.weight for conv in convs.values()]
        self._sums = self._steps = None

    @torch.no_grad()
    def accumulate(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Add the present gradients; a conv without gradient adds nothing.

        A step with a gradient that is not finite is left out, as a scaler leaves it out.
        """
        if not self._weights:
            return
        device = self._weights[0].device
        scores = torch.stack(
            [
                torch.zeros((), device=device) if w.grad is None
                else SCORES[self.name](w.grad.detach().float(), w.detach().float())
                for w in self._weights
            ]
        )  # fmt: skip
        if scaler is not None and scaler.is_enabled():
            scores = scores / scaler.scale(torch.ones((), device=device))
        finite = scores.isfinite().all()
        if self._sums is None or self._steps is None:
            self._sums, self._steps = torch.zeros_like(scores), torch.zeros_like(scores[0])
        self._sums += torch.where(finite, scores, 0.0)
        self._steps += finite

    def ranking(self, generator: torch.Generator) -> list[tuple[str, float]]:
        """Return (path, mean score per step), best first; collective, the same on every rank."""
        if self._sums is None or self._steps is None:
            return []
        packed = torch.cat([self._sums, self._steps[None]])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(packed)
        *sums, steps = packed.tolist()
        means = [value / max(steps, 1.0) for value in sums]
        if self.name == "random":
            means = torch.rand(len(means), generator=generator).tolist()
        return sorted(zip(self._paths, means, strict=True), key=lambda pair: -pair[1])

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the running interval."""
        return {"paths": self._paths, "sums": self._sums, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the sums of an interval.

        Raises:
            ValueError: they belong to other convs.
        """
        if state["paths"] != self._paths:
            raise ValueError("saliency was summed over other layers than this network has")
        device = self._weights[0].device if self._weights else None
        self._sums, self._steps = (
            None if state[key] is None else state[key].to(device) for key in ("sums", "steps")
        )
