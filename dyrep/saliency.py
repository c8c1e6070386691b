"""Sum saliency scores during training; they rank convolutions for growth.

    gain        ||g||^2 / fan_in, an estimate of how far new branches can lower the loss (see below)
    snip        sum |g * w|   (Lee et al., ICLR 2019)
    grad_norm   ||g||_2
    synflow     sum(g * w), signed, as published. It is zero in exact arithmetic for a conv followed
                by a batch norm, whose output does not depend on the scale of the weight. So it
                ranks such convs by rounding errors. It is kept to reproduce published runs.
    random      noise, the baseline

`gain` follows from the form of a branch: gamma times a kernel K with outputs of variance 1. A
gradient step on gamma lowers the loss by lr * <g, K>^2 to first order. For a random K over
independent inputs of second moment 1, the entries have variance 1 / fan_in, so the expected value
is lr * ||g||^2 / fan_in. After batch norm and ReLU it is about half of that, so `gain` is an
estimate. `gain_per_flop` divides `gain` by the FLOPs of the branches that the layer would get.

Scores are computed from `weight.grad` after backward, on the device, in float32 or the wider dtype
of the weights. Until `ranking`, the host reads nothing from the device and ranks do not
communicate. Steps with overflowed gradients are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dyrep.state import SaliencyState


@dataclass(frozen=True)
class Score:
    """`of` maps gradient and weight to a scalar, homogeneous in the gradient of this `degree`."""

    of: Callable[[Tensor, Tensor], Tensor]
    degree: int = 1
    per_flop: bool = False


def _gain(g: Tensor, w: Tensor) -> Tensor:
    return torch.linalg.vector_norm(g).square() / w[0].numel()


SCORES: dict[str, Score] = {
    "gain": Score(_gain, degree=2),
    "gain_per_flop": Score(_gain, degree=2, per_flop=True),
    "snip": Score(lambda g, w: torch.linalg.vector_norm(g * w, 1)),
    "grad_norm": Score(lambda g, w: torch.linalg.vector_norm(g)),
    "synflow": Score(lambda g, w: (g * w).sum()),
    "random": Score(lambda g, w: g.new_zeros(())),
}


NOTHING_SEEN = (
    "no gradient was seen since the last adjustment: call accumulate() at each step, after "
    "backward() and before the gradients are zeroed"
)
ALL_ZERO = (
    "every gradient since the last adjustment was zero: the loss does not depend on these "
    "convolutions (labels of one class only? images without content?)"
)


class Saliency:
    """Sums of a score over the steps of an interval, one per watched conv."""

    def __init__(self, name: str) -> None:
        if name not in SCORES:
            raise ValueError(f"saliency {name!r} is unknown; choose from {', '.join(SCORES)}")
        self.name = name
        self.per_flop = SCORES[name].per_flop
        self._paths: list[str] = []
        self._weights: list[Tensor] = []
        self._sums: Tensor | None = None
        self._steps: Tensor | None = None
        self._seen = False  # whether a gradient was seen, zero or not

    def watch(self, convs: dict[str, nn.Conv2d]) -> None:
        """Reset the sums and watch these convs."""
        self._paths = list(convs)
        self._weights = [conv.weight for conv in convs.values()]
        self._sums = self._steps = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which scores are computed and summed."""
        return reduce(torch.promote_types, (w.dtype for w in self._weights), torch.float32)

    @torch.no_grad()
    def accumulate(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Add the scores of the current gradients; a conv without gradient adds zero.

        A step with non-finite gradients is left out, as a GradScaler does.
        """
        if not self._weights:
            return
        self._seen = self._seen or any(weight.grad is not None for weight in self._weights)
        scale = torch.ones((), device=self._weights[0].device)
        scaling = scaler is not None and scaler.is_enabled()
        scores = self.scores(scaler.scale(scale) if scaler is not None and scaling else scale)
        finite = scores.isfinite().all()
        if self._sums is None or self._steps is None:
            self._sums, self._steps = torch.zeros_like(scores), torch.zeros_like(scores[0])
        self._sums += scores.masked_fill(~finite, 0.0)
        self._steps += finite

    def scores(self, scale: Tensor) -> Tensor:
        """Return the scores (convs,) of this step; zero for a conv without gradient.

        Args:
            scale: Factor by which a GradScaler has multiplied the gradients; 1 without one.
        """
        of, device, dtype = SCORES[self.name].of, self._weights[0].device, self.dtype
        scores = torch.stack(
            [
                torch.zeros((), device=device, dtype=dtype) if w.grad is None
                else of(w.grad.detach().to(dtype), w.detach().to(dtype))
                for w in self._weights
            ]
        )  # fmt: skip
        return scores / scale ** SCORES[self.name].degree

    def ranking(self, generator: torch.Generator) -> list[tuple[str, float]]:
        """Return pairs (path, mean score per step), best first; collective, equal on every rank.

        Raises:
            RuntimeError: no conv had a gradient at any step.
        """
        means, _ = self.means()
        if self.name == "random":
            means = torch.rand(len(means), generator=generator).tolist()
        return sorted(zip(self._paths, means, strict=True), key=lambda pair: -pair[1])

    def means(self) -> tuple[list[float], float]:
        """Return the mean of each score over steps and ranks, and the number of steps per rank.

        Collective, the same on every rank.

        Raises:
            RuntimeError: no conv had a gradient at any step.
        """
        if not self._weights:
            return [], 0.0
        if self._sums is None or self._steps is None:
            raise RuntimeError(NOTHING_SEEN)
        packed = torch.cat([self._sums, self._steps[None]])
        ranks = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(packed)
            ranks = dist.get_world_size()
        *sums, steps = packed.tolist()
        if self.name != "random" and steps and not any(sums):
            raise RuntimeError(ALL_ZERO if self._seen else NOTHING_SEEN)
        return [value / max(steps, 1.0) for value in sums], steps / ranks

    def state_dict(self) -> SaliencyState:
        """Return the sums of the current interval."""
        sums, steps = (None if t is None else t.clone() for t in (self._sums, self._steps))
        return {"paths": self._paths, "sums": sums, "steps": steps}

    def load_state_dict(self, state: SaliencyState) -> None:
        """Load the sums of an interval.

        Raises:
            ValueError: the sums belong to other convs.
        """
        if state["paths"] != self._paths:
            raise ValueError("saliency was summed over other layers than this network has")
        device = self._weights[0].device if self._weights else None
        self._seen = state["sums"] is not None
        kept = state["sums"], state["steps"]
        self._sums, self._steps = (None if t is None else t.to(device) for t in kept)
