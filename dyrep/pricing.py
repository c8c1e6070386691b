"""Growing linear branches one by one: those that promise most per cost, under a budget.

The gain of a branch is how much lower the loss would be had the last step gone further along it, by
what the branch adds to its speed. With D the step that the kernel made last, G = dL/dW on the next
batch, P(.) the part that the branch can follow, and a strength that adds strength^2 to the speed of
that part (`expansion.grow`), it is to first order

    gain = (strength^2 + 2 / fan_in) <P(D), P(G)>

where the second term is what the strengths themselves learn: E <D, K> <K, G> for a kernel K drawn
from N(0, 2 / fan_in). It is below zero where steps go too far already, and no branch helps there.
D and G come from different batches, so noise does not count as gain, which it would in |P(G)|^2.
The same product tells whether a learning rate should rise (Baydin et al., "Online Learning Rate
Adaptation with Hypergradient Descent", arXiv 1703.04782); here it is taken branch by branch:

    1x1        at the centre                           fan_in: inputs of a group
    1xk, kx1   in the middle row, the column           times k
    1x1_avg    of the sums over the window / window    times the window
    1x1_kxk    of the whole kernel                     times the window
    identity   of the taps by which channels see themselves; the kernel itself is fixed
    1x1_avg of a depthwise conv has no kernel either: of the sums / window^2

The price of a branch is what a step costs more with it, in steps of the plain network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dyrep import budget, expansion
from dyrep.block import depth, fitting, place_block
from dyrep.budget import Measure, slowest, step_seconds
from dyrep.cost import cost
from dyrep.fusion import plain_copy
from dyrep.geometry import Geometry
from dyrep.linear import LinearBlock
from dyrep.saliency import Saliency

EVERY = 8  # steps, of which the gains of one are taken
SURE = 2.0  # standard errors by which a gain must be above zero
TINY = 1e-12  # a price that no clock can tell from nothing
ROUNDS = 3  # times that a kernel is composed, after one to warm up
CACHES = 2**23  # bytes; more than a core has of its own
PLAIN_ROUNDS = 2  # steps of the plain network, after one to warm up


@dataclass(frozen=True)
class Candidate:
    """A branch that a layer could get.

    Args:
        path: Of the conv, or of the block it became.
        branch: Its name.
        gain: Per step, at least; see above.
        price: In steps of the plain network.
    """

    path: str
    branch: str
    gain: float
    price: float

    @property
    def worth(self) -> float:
        """Gain per price."""
        return self.gain / max(self.price, TINY)


def gains(
    moved: Tensor, gradient: Tensor, geometry: Geometry, names: Sequence[str], strength: float
) -> Tensor:
    """Return what each branch would have gained.

    Args:
        moved: By which the kernel went down at the last step, (out, in/groups, kh, kw).
        gradient: Of the kernel now, of the same shape.
        geometry: Of the conv.
        names: Of branches the conv can take.
        strength: Of a new branch.

    Returns:
        (len(names),)
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
    """Return the taps (out, in/groups) by which each channel sees itself, (out,)."""
    own = torch.arange(len(taps), device=taps.device) % (len(taps) // groups)
    return taps.gather(1, own[:, None])[:, 0]


class Promise(Saliency):
    """Sums of the gains of all branches that convs could still get, and of their squares.

    One step of `EVERY` is looked at: from it to the next there is a copy of the kernels.
    """

    def __init__(self, strength: float) -> None:
        super().__init__("gain")
        self._strength = strength
        self._open: list[tuple[Geometry, list[str]]] = []
        self._before: list[Tensor] = []
        self._calls = 0

    def watch_branches(self, open_branches: dict[str, list[str]], model: nn.Module) -> None:
        """Start anew with these branches, by the path of a conv or of the block it became."""
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
        self._paths = [f"{path} {name}" for path, names in open_branches.items() for name in names]
        self._before, self._calls = [], 0

    @torch.no_grad()
    def accumulate(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Add the gains of the step before, seen from the present gradients, if it is its turn."""
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

    def ranking(self, generator: torch.Generator) -> list[tuple[str, float]]:
        """Return (path and branch, what it gains per step at least), best first.

        That is the mean less `SURE` standard errors; what is not surely above zero gains 0, and
        of fewer than two steps nothing is sure.
        """
        count = len(self._paths)
        if self._sums is None and self._seen:
            return [(path, 0.0) for path in self._paths]
        sums, steps = self.means()
        if steps < 2:
            return [(path, 0.0) for path in self._paths]
        means, squares = sums[:count], sums[count : 2 * count]
        found = []
        for path, mean, square in zip(self._paths, means, squares, strict=True):
            error = (max(square - mean**2, 0) / (steps - 1)) ** 0.5
            found.append((path, max(mean - SURE * error, 0.0)))
        return sorted(found, key=lambda pair: -pair[1])

    def state_dict(self) -> dict[str, Any]:
        before = [kernel.clone() for kernel in self._before]
        return {**super().state_dict(), "before": before, "calls": self._calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        device = self._weights[0].device if self._weights else None
        self._before = [kernel.to(device) for kernel in state["before"]]
        self._calls = state["calls"]


class Prices:
    """What each kind of branch costs on each kind of conv, in steps of the plain network.

    A linear block is the conv with a kernel that is composed, so what a branch costs is composing:
    the same for any input, and found out once. `state_dict` keeps it, as what is measured again
    would lead to other choices.

    Args:
        measure: `seconds` of composing the kernel of a block with the branch, forward and
            backward; or `flops`, which are the same each time.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._known: dict[str, float] = {}
        self._whole: float | None = None

    def price(self, conv: nn.Conv2d, name: str, model: nn.Module, batch: Tensor) -> float:
        """Return what a step of the model costs more with the branch; the same on every rank."""
        key = f"{name} on {Geometry.of(conv)}, {conv.weight.dtype}"
        if key not in self._known:
            self._known[key] = slowest(self._composing(conv, name)) / self.whole(model, batch)
        return self._known[key]

    def whole(self, model: nn.Module, batch: Tensor) -> float:
        """Return what a step of the plain network takes, in seconds or FLOPs of a forward."""
        if self._whole is None:
            plain = plain_copy(model)
            if self.measure == "flops":
                self._whole = float(cost(plain, batch).flops * len(batch))
            else:
                times = [step_seconds(plain, batch) for _ in range(1 + PLAIN_ROUNDS)]
                self._whole = slowest(min(times[1:]))
        return self._whole

    def _composing(self, conv: nn.Conv2d, name: str) -> float:
        holder = nn.Sequential(copy.deepcopy(conv))
        block = place_block(holder, "0", [name], fixed=True, form="linear")
        assert isinstance(block, LinearBlock)
        composing, nothing = Composing(block), conv.weight.detach()
        if self.measure == "flops":
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                composing(nothing)
            # what is added is added somewhere
            return float(max(counter.get_total_flops(), 2 * conv.weight.numel()))
        return min([_cold_seconds(composing, nothing) for _ in range(1 + ROUNDS)][1:])

    def state_dict(self) -> dict[str, Any]:
        """Return what is known; seconds of a whole step are those of this machine, and stay."""
        whole = self._whole if self.measure == "flops" else None
        return {"known": dict(self._known), "whole": whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self._known, self._whole = dict(state["known"]), state["whole"]


def _cold_seconds(model: nn.Module, batch: Tensor) -> float:
    """Time a step as it is among others, whose activations have filled the caches of a CPU."""
    if batch.device.type == "cpu":
        torch.ones(CACHES, dtype=torch.uint8)
    return step_seconds(model, batch)


class Composing(nn.Module):
    """What a block does beyond its conv, whatever it is given."""

    def __init__(self, block: LinearBlock) -> None:
        super().__init__()
        self._block = block

    def forward(self, _: Tensor) -> Tensor:
        weight = self._block.conv.weight
        return self._block.composed(torch.promote_types(weight.dtype, torch.float32))


def open_branches(model: nn.Module, branches: Sequence[str]) -> dict[str, list[str]]:
    """Return which of the branches each layer could still get, by path.

    What is inside a block gets none: a second branch of a kind only adds to the speed of the first.
    """
    unfit = expansion.unfit_convs(model)
    found = {}
    for path, conv in expansion.convs(model):
        owner = path.removesuffix(".branches.kxk.conv")
        if path in unfit or depth(model, owner) > 0:
            continue
        there = model.get_submodule(owner)
        if isinstance(there, LinearBlock) and not there.fixed:
            continue  # a block from the start, with all the branches it was to have
        has = there.names if isinstance(there, LinearBlock) else []
        names = [n for n in fitting(conv, branches) if n != "kxk" and n not in has]
        if names:
            found[owner] = names
    return found


def spent(model: nn.Module, batch: Tensor, prices: Prices) -> float:
    """Return what a step of a network with linear blocks costs, in steps of its plain form."""
    held = [(p, m) for p, m in model.named_modules() if isinstance(m, LinearBlock)]
    shapes = budget.input_shapes(model, [path for path, _ in held], batch)
    return 1 + sum(
        prices.price(block.conv, name, model, batch)
        for path, block in held
        for name in block.names
        if name != "kxk" and path in shapes
    )


def candidates(
    model: nn.Module, ranking: Sequence[tuple[str, float]], batch: Tensor, prices: Prices
) -> list[Candidate]:
    """Return branches with their prices, the one of most worth first."""
    keyed = ((key.rpartition(" "), gain) for key, gain in ranking)
    pairs = [(path, name, gain) for (path, _, name), gain in keyed]
    shapes = budget.input_shapes(model, list(dict.fromkeys(path for path, *_ in pairs)), batch)

    def priced() -> Iterator[Candidate]:
        for path, name, gain in pairs:
            if path in shapes:
                layer = model.get_submodule(path)
                conv = layer.conv if isinstance(layer, LinearBlock) else layer
                assert isinstance(conv, nn.Conv2d)
                yield Candidate(path, name, gain, prices.price(conv, name, model, batch))

    return sorted(priced(), key=lambda c: -c.worth)
