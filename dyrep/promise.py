"""Predict the gain of each linear branch that a conv could get, from the steps of the training.

The gain of a branch is the further decrease of the loss if the last step had gone further in the
directions of the branch, by the learning speed that the branch adds. Let D be the last step of the
kernel, G = dL/dW on the next batch, and P(.) the projection onto the kernels that the branch can
represent. The strength adds strength^2 to the speed of that part (`expansion.grow`). Then the gain
is, to first order,

    gain = (strength^2 + 2 / fan_in) <P(D), P(G)>

The second term is learned by the strengths themselves: E <D, K> <K, G> for a kernel K drawn from
N(0, 2 / fan_in). The gain is negative if steps already go too far; then no branch helps. D and G
come from different batches, so noise does not count as gain, as it would in |P(G)|^2. The same
product decides whether a learning rate should rise (Baydin et al., "Online Learning Rate Adaptation
with Hypergradient Descent", arXiv 1703.04782); here it is computed for each branch:

    1x1        P: the centre                           fan_in: inputs of a group
    1xk, kx1   P: the middle row or column             fan_in: times k
    1x1_avg    P: the sums over the window / window    fan_in: times the window
    1x1_kxk    P: the whole kernel                     fan_in: times the window
    identity   P: the taps from a channel to itself; its kernel is fixed
    1x1_avg of a depthwise conv has a fixed kernel, too; P: the sums / window^2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dyrep.geometry import Geometry
from dyrep.linear import LinearBlock
from dyrep.saliency import Saliency
from dyrep.state import SaliencyState

EVERY = 8  # gains are computed in one of so many steps
SURE = 2.0  # number of standard errors that are subtracted from a gain


def gains(
    moved: Tensor, gradient: Tensor, geometry: Geometry, names: Sequence[str], strength: float
) -> Tensor:
    """Return the gain of each branch for one step.

    Args:
        moved: Decrease of the kernel at the last step, (out, in/groups, kh, kw).
        gradient: Current gradient of the kernel, of the same shape.
        geometry: Geometry of the conv.
        names: Branches that the conv can take.
        strength: Strength of a new branch.

    Returns:
        A tensor of shape (len(names),).
    """
    row, column = geometry.centre
    inputs, window = gradient.shape[1], gradient[0, 0].numel()
    agreed = (moved * gradient).sum((0, 1))
    found = {
        "1x1": (agreed[row, column], inputs),
        "1xk": (agreed[row].sum(), inputs * gradient.shape[3]),
        "kx1": (agreed[:, column].sum(), inputs * gradient.shape[2]),
        "1x1_kxk": (agreed.sum(), inputs * window),
    }
    if "1x1_avg" in names:
        sums = (moved.sum((2, 3)) * gradient.sum((2, 3))).sum()
        found["1x1_avg"] = (sums / window, inputs * window)
    gained = {name: part * (strength**2 + 2 / fan) for name, (part, fan) in found.items()}
    if "identity" in names:
        own = [_diagonal(each[:, :, row, column], geometry.groups) for each in (moved, gradient)]
        gained["identity"] = (own[0] * own[1]).sum()
    if "1x1_avg" in names and geometry.in_channels == geometry.out_channels == geometry.groups:
        gained["1x1_avg"] = (moved.mean((2, 3)) * gradient.mean((2, 3))).sum()
    return torch.stack([gained[name] for name in names])


def _diagonal(taps: Tensor, groups: int) -> Tensor:
    """Return the diagonal (out,) of taps (out, in/groups): each channel's weight for itself."""
    own = torch.arange(len(taps), device=taps.device) % (len(taps) // groups)
    return taps.gather(1, own[:, None])[:, 0]


class Gain(NamedTuple):
    """A lower bound of the gain per step, for a branch of the layer at `path`."""

    path: str
    branch: str
    gain: float


class Promise(Saliency):
    """Sums of the gains, and of their squares, for all branches that convs could still get.

    Gains are computed in one of `EVERY` steps; until the next step a copy of the kernels is kept.
    """

    def __init__(self, strength: float) -> None:
        super().__init__("gain")
        self._strength = strength
        self._open: list[tuple[Geometry, list[str]]] = []
        self._branches: list[tuple[str, str]] = []
        self._before: list[Tensor] = []
        self._calls = 0

    def watch_branches(self, open_branches: dict[str, list[str]], model: nn.Module) -> None:
        """Reset the sums and watch these branches, by the path of their conv or block."""
        layers = {path: model.get_submodule(path) for path in open_branches}
        convs = {
            path: layer.conv if isinstance(layer, LinearBlock) else layer
            for path, layer in layers.items()
        }
        self.watch(convs)  # type: ignore[arg-type]
        self._open = [
            (Geometry.of(convs[path]), names)  # type: ignore[arg-type]
            for path, names in open_branches.items()
        ]
        self._branches = [(path, name) for path, names in open_branches.items() for name in names]
        self._paths = [f"{path} {name}" for path, name in self._branches]  # for checkpoints
        self._before, self._calls = [], 0

    @torch.no_grad()
    def accumulate(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Add the gains of the last step, from the current gradients, in one of `EVERY` steps."""
        self._seen = self._seen or any(weight.grad is not None for weight in self._weights)
        if self._before:
            super().accumulate(scaler)
            self._before = []
        if self._calls % EVERY == 0:
            self._before = [weight.detach().clone() for weight in self._weights]
        self._calls += 1

    def scores(self, scale: Tensor) -> Tensor:
        device, dtype = self._weights[0].device, self.dtype
        found = torch.cat(
            [
                torch.zeros(len(names), device=device, dtype=dtype) if w.grad is None
                else gains((before - w.detach()).to(dtype), w.grad.detach().to(dtype) / scale,
                           geometry, names, self._strength)
                for before, w, (geometry, names)
                in zip(self._before, self._weights, self._open, strict=True)
            ]
        )  # fmt: skip
        energy = sum(w.grad.square().sum() for w in self._weights if w.grad is not None)
        return torch.cat([found, found.square(), found.new_tensor([0.0]) + energy])

    def gains(self) -> list[Gain]:
        """Return a lower bound of each branch's gain per step, best first; collective.

        The bound is the mean minus `SURE` standard errors, or 0 if that is negative or fewer than
        two steps were summed.

        Raises:
            RuntimeError: no conv had a gradient at any step.
        """
        count = len(self._branches)
        if self._sums is None and self._seen:
            return [Gain(path, name, 0.0) for path, name in self._branches]
        sums, steps = self.means()
        if steps < 2:
            return [Gain(path, name, 0.0) for path, name in self._branches]
        means, squares = sums[:count], sums[count : 2 * count]
        found = []
        for (path, name), mean, square in zip(self._branches, means, squares, strict=True):
            error = (max(square - mean**2, 0) / (steps - 1)) ** 0.5
            found.append(Gain(path, name, max(mean - SURE * error, 0.0)))
        return sorted(found, key=lambda one: -one.gain)

    def state_dict(self) -> SaliencyState:
        before = [kernel.clone() for kernel in self._before]
        return {**super().state_dict(), "before": before, "calls": self._calls}

    def load_state_dict(self, state: SaliencyState) -> None:
        super().load_state_dict(state)
        device = self._weights[0].device if self._weights else None
        self._before = [kernel.to(device) for kernel in state["before"]]
        self._calls = state["calls"]
