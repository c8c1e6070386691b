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

import torch
from torch import Tensor, nn

from dyrep import budget, expansion
from dyrep.block import depth, fitting, place_block
from dyrep.budget import Measure, slowest, step_seconds
from dyrep.cost import cost
from dyrep.fusion import plain_copy
from dyrep.geometry import Geometry
from dyrep.linear import LinearBlock
from dyrep.saliency import Saliency

TINY = 1e-12  # a price that no clock can tell from nothing
ROUNDS = 9  # pairs of steps of a layer that are timed, after one to warm up


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
    """What each kind of branch costs on a conv of each shape, found out once.

    Args:
        measure: `seconds`, a forward and backward of the layer with and without the branch, timed
            side by side; or `flops`, which are the same each time.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._known: dict[tuple[object, ...], float] = {}
        self._plain: float | None = None

    def price(self, conv: nn.Conv2d, name: str, shape: torch.Size, whole: float) -> float:
        """Return what a step costs more, of a step that costs `whole`; the same on every rank."""
        key = (Geometry.of(conv), name, shape, conv.weight.dtype, torch.is_autocast_enabled())
        if key not in self._known:
            self._known[key] = slowest(self._extra(conv, name, shape))
        return self._known[key] / whole

    def whole(self, model: nn.Module, batch: Tensor) -> float:
        """Return what a step of the plain network costs."""
        if self._plain is None:
            plain = plain_copy(model)
            if self.measure == "flops":
                self._plain = float(cost(plain, batch).flops * len(batch))
            else:
                times = [step_seconds(plain, batch) for _ in range(1 + budget.ROUNDS)]
                self._plain = slowest(statistics.median(times[1:]))
        return self._plain

    def _extra(self, conv: nn.Conv2d, name: str, shape: torch.Size) -> float:
        plain, holder = copy.deepcopy(conv), nn.Sequential(copy.deepcopy(conv))
        place_block(holder, "0", [name], fixed=True, form="linear")
        example = conv.weight.detach().new_zeros(shape)
        if self.measure == "flops":
            extra = (cost(holder, example).flops - cost(plain, example).flops) * len(example)
            return float(max(extra, 2 * conv.weight.numel()))  # what is added is added somewhere
        pairs = [
            step_seconds(holder, example) - step_seconds(plain, example) for _ in range(1 + ROUNDS)
        ]
        return at_least(pairs[1:])


def at_least(differences: list[float]) -> float:
    """Return the median of timed differences, or how far they spread if that is more.

    What is too small to be measured costs what the clock can tell, not nothing.
    """
    middle = statistics.median(differences)
    return max(middle, statistics.median(abs(each - middle) for each in differences))


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
    whole = prices.whole(model, batch)
    shapes = budget.input_shapes(model, [path for path, _ in held], batch)
    extra = [
        prices.price(block.conv, name, shapes[path], whole)
        for path, block in held
        for name in block.names
        if name != "kxk" and path in shapes
    ]
    return 1 + sum(extra)


def candidates(
    model: nn.Module, ranking: Sequence[tuple[str, float]], batch: Tensor, prices: Prices
) -> list[Candidate]:
    """Return branches with their prices, the one of most worth first."""
    keyed = ((key.rpartition(" "), gain) for key, gain in ranking)
    pairs = [(path, name, gain) for (path, _, name), gain in keyed]
    shapes = budget.input_shapes(model, list(dict.fromkeys(path for path, *_ in pairs)), batch)
    whole = prices.whole(model, batch)

    def priced() -> Iterator[Candidate]:
        for path, name, gain in pairs:
            if path in shapes:
                layer = model.get_submodule(path)
                conv = layer.conv if isinstance(layer, LinearBlock) else layer
                assert isinstance(conv, nn.Conv2d)
                yield Candidate(path, name, gain, prices.price(conv, name, shapes[path], whole))

    return sorted(priced(), key=lambda c: -c.worth)
