"""Growing linear branches one by one: those that promise most per cost, under a budget.

The gain of a branch is how much further a step of gradient descent lowers the loss with it, to
first order and divided by the learning rate. With G = dL/dW of the whole kernel, P(G) the part of G
that the branch can follow, and a strength that adds strength^2 to the speed of that part
(`expansion.grow`),

    gain = (strength^2 + 2 / fan_in) |P(G)|^2

where the second term is what the strengths themselves learn: E <G, K>^2 for a kernel K drawn from
N(0, 2 / fan_in). All of it comes from the one gradient that is there anyway:

    1x1        |G|^2 at the centre                     fan_in: inputs of a group
    1xk, kx1   |G|^2 in the middle row, the column     times k
    1x1_avg    |sum of G over the window|^2 / window   times the window
    1x1_kxk    |G|^2                                   times the window
    identity   <G, I>^2 per channel, the kernel itself is fixed; so is a depthwise average

The price of a branch is what a step costs more with it, in steps of the plain network.
"""

from __future__ import annotations

import copy
import statistics
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

TINY = 1e-12  # a price that no clock can tell from nothing
ROUNDS = 5  # times that a kernel is composed, after one to warm up
PLAIN_ROUNDS = 2  # steps of the plain network, after one to warm up


@dataclass(frozen=True)
class Candidate:
    """A branch that a layer could get.

    Args:
        path: Of the conv, or of the block it became.
        branch: Its name.
        gain: Mean per step; see above.
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


def gains(gradient: Tensor, geometry: Geometry, names: Sequence[str], strength: float) -> Tensor:
    """Return what each branch would gain by this gradient of the whole kernel.

    Args:
        gradient: Of the kernel, (out, in/groups, kh, kw).
        geometry: Of the conv.
        names: Of branches the conv can take.
        strength: Of a new branch.

    Returns:
        (len(names),)
    """
    row, column = geometry.centre
    inputs, window = gradient.shape[1], gradient[0, 0].numel()
    energy = gradient.square().sum((0, 1))
    found = {
        "1x1": (energy[row, column], inputs),
        "1xk": (energy[row].sum(), inputs * gradient.shape[3]),
        "kx1": (energy[:, column].sum(), inputs * gradient.shape[2]),
        "1x1_kxk": (energy.sum(), inputs * window),
    }
    if "1x1_avg" in names:
        found["1x1_avg"] = (gradient.sum((2, 3)).square().sum() / window, inputs * window)
    gained = {name: part * (strength**2 + 2 / fan) for name, (part, fan) in found.items()}
    if "identity" in names:
        diagonal = _diagonal(gradient[:, :, row, column], geometry.groups)
        gained["identity"] = diagonal.square().sum()
    if "1x1_avg" in names and geometry.in_channels == geometry.out_channels == geometry.groups:
        gained["1x1_avg"] = gradient.mean((2, 3)).square().sum()
    return torch.stack([gained[name] for name in names])


def _diagonal(taps: Tensor, groups: int) -> Tensor:
    """Return the taps (out, in/groups) by which each channel sees itself, (out,)."""
    own = torch.arange(len(taps), device=taps.device) % (len(taps) // groups)
    return taps.gather(1, own[:, None])[:, 0]


class Promise(Saliency):
    """Sums of the gains of all branches that convs could still get."""

    def __init__(self, strength: float) -> None:
        super().__init__("gain")  # of the same degree in the gradient
        self._strength = strength
        self._open: list[tuple[Geometry, list[str]]] = []

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

    def scores(self) -> Tensor:
        device, dtype = self._weights[0].device, self.dtype
        return torch.cat(
            [
                torch.zeros(len(names), device=device, dtype=dtype) if w.grad is None
                else gains(w.grad.detach().to(dtype), geometry, names, self._strength)
                for w, (geometry, names) in zip(self._weights, self._open, strict=True)
            ]
        )  # fmt: skip


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
        return statistics.median([step_seconds(composing, nothing) for _ in range(1 + ROUNDS)][1:])

    def state_dict(self) -> dict[str, Any]:
        """Return what is known; seconds of a whole step are those of this machine, and stay."""
        whole = self._whole if self.measure == "flops" else None
        return {"known": dict(self._known), "whole": whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self._known, self._whole = dict(state["known"]), state["whole"]


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
