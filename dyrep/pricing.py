"""Price linear branches, and order the candidates for growth by gain per price.

`dyrep.promise` computes gains. The price of a branch is the additional cost of a step, in steps of
the plain network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyrep import budget, eligible
from dyrep.block import depth, fitting, place_block
from dyrep.budget import Measure, slowest, step_seconds
from dyrep.cost import cost
from dyrep.fusion import plain_copy
from dyrep.geometry import Geometry
from dyrep.linear import LinearBlock
from dyrep.promise import Gain
from dyrep.state import PricesState

TINY = 1e-12  # a price too small to measure
ROUNDS = 3  # timed compositions of a kernel, after one to warm up
CACHES = 2**23  # bytes; more than the caches of a core hold
PLAIN_ROUNDS = 2  # timed steps of the plain network, after one to warm up


@dataclass(frozen=True)
class Candidate:
    """A branch that a layer could get.

    Args:
        path: Path of the conv, or of the block it became.
        branch: Name of the branch.
        gain: Lower bound of the gain per step; see `dyrep.promise`.
        price: Additional cost of a step, in steps of the plain network.
    """

    path: str
    branch: str
    gain: float
    price: float

    @property
    def worth(self) -> float:
        """The gain per price."""
        return self.gain / max(self.price, TINY)


class Prices:
    """The price of each kind of branch on each kind of conv, in steps of the plain network.

    A linear block is a conv with a composed kernel, so the cost of a branch is that of composing
    it. This cost does not depend on the input and is measured once. `state_dict` keeps it, because
    a second measurement would lead to other choices.

    Args:
        measure: `seconds` of composing the kernel of a block with the branch, forward and
            backward; or `flops`, which are reproducible.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._known: dict[str, float] = {}
        self._whole: float | None = None

    def price(self, conv: nn.Conv2d, name: str, model: nn.Module, batch: Tensor) -> float:
        """Return the additional cost of a step with the branch; equal on every rank."""
        key = f"{name} on {Geometry.of(conv)}, {conv.weight.dtype}"
        if key not in self._known:
            self._known[key] = slowest(self._composing(conv, name)) / self.whole(model, batch)
        return self._known[key]

    def whole(self, model: nn.Module, batch: Tensor) -> float:
        """Return the cost of a step of the plain network, in seconds or FLOPs of a forward."""
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
            from torch.utils.flop_counter import FlopCounterMode  # imports triton

            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                composing(nothing)
            # at least the addition of the two kernels
            return float(max(counter.get_total_flops(), 2 * conv.weight.numel()))
        return min([_cold_seconds(composing, nothing) for _ in range(1 + ROUNDS)][1:])

    def state_dict(self) -> PricesState:
        """Return the known prices, without the seconds of a whole step, which are not portable."""
        whole = self._whole if self.measure == "flops" else None
        return {"known": dict(self._known), "whole": whole}

    def load_state_dict(self, state: PricesState) -> None:
        """Restore a state that `state_dict` returned."""
        self._known, self._whole = dict(state["known"]), state["whole"]


def _cold_seconds(model: nn.Module, batch: Tensor) -> float:
    """Time a step with cold CPU caches, as they are after the other layers of a network."""
    if batch.device.type == "cpu":
        torch.ones(CACHES, dtype=torch.uint8)
    return step_seconds(model, batch)


class Composing(nn.Module):
    """The work of a block beyond its conv, which does not depend on the input."""

    def __init__(self, block: LinearBlock) -> None:
        super().__init__()
        self._block = block

    def forward(self, _: Tensor) -> Tensor:
        weight = self._block.conv.weight
        return self._block.composed(torch.promote_types(weight.dtype, torch.float32))


def open_branches(model: nn.Module, branches: Sequence[str]) -> dict[str, list[str]]:
    """Return the branches that each layer could still get, by path.

    A conv inside a block gets no branches, because a second branch of a kind would only add to the
    speed of the first.
    """
    unfit = eligible.unfit_convs(model)
    found = {}
    for path, conv in eligible.convs(model):
        owner = path.removesuffix(".branches.kxk.conv")
        if path in unfit or depth(model, owner) > 0:
            continue
        there = model.get_submodule(owner)
        if isinstance(there, LinearBlock) and not there.fixed:
            continue  # a block from `expand`, which has all its branches
        has = there.names if isinstance(there, LinearBlock) else []
        names = [n for n in fitting(conv, branches) if n != "kxk" and n not in has]
        if names:
            found[owner] = names
    return found


def spent(model: nn.Module, batch: Tensor, prices: Prices) -> float:
    """Return the cost of a step of a network with linear blocks, in steps of its plain form."""
    held = [(p, m) for p, m in model.named_modules() if isinstance(m, LinearBlock)]
    shapes = budget.input_shapes(model, [path for path, _ in held], batch)
    return 1 + sum(
        prices.price(block.conv, name, model, batch)
        for path, block in held
        for name in block.names
        if name != "kxk" and path in shapes
    )


def candidates(
    model: nn.Module, gains: Sequence[Gain], batch: Tensor, prices: Prices
) -> list[Candidate]:
    """Return the branches with their prices, largest gain per price first."""
    shapes = budget.input_shapes(model, list(dict.fromkeys(one.path for one in gains)), batch)

    def priced() -> Iterator[Candidate]:
        for path, name, gain in gains:
            if path in shapes:
                layer = model.get_submodule(path)
                conv = layer.conv if isinstance(layer, LinearBlock) else layer
                assert isinstance(conv, nn.Conv2d)
                yield Candidate(path, name, gain, prices.price(conv, name, model, batch))

    return sorted(priced(), key=lambda c: -c.worth)
