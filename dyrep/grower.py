"""Add linear branches one by one, by the largest predicted gain per cost: the class Grower."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dyrep import expansion, pricing
from dyrep.branches import ALL_BRANCHES, LINEAR_ONLY
from dyrep.budget import Measure
from dyrep.cost import cost as cost_of
from dyrep.events import Chosen, Event
from dyrep.evolution import DyRep, outputs
from dyrep.pricing import Candidate, Prices
from dyrep.promise import Promise
from dyrep.state import EvolverState

NO_GAIN = "no branch gains: a longer step along it would not have lowered the loss of a new batch"


class Grower(DyRep):
    """Grows single branches by predicted gain per cost, within a budget, and cuts weak ones.

    It is used like `DyRep`. Unless `choose` is `random`, a layer without a branch of positive gain
    is not grown and is listed in `left`. Blocks are linear (`dyrep.linear`), so a step costs little
    more than a plain one. A layer that grew is skipped at the next adjustment, so that its new
    branches take effect first.

    Args:
        model, optimizer, ema, adjust_interval, last_adjust_epoch, cut_std, cut_ratio, seed: As
            for `DyRep`.
        branches: Branches that a layer may get.
        choose: `worth`, largest gain per price first (`dyrep.pricing`), or `random`, the baseline.
        strength: Strength of a new branch; see `dyrep.expansion.grow`.
        grow: Number of branches per adjustment.
        max_cost: Limit on the cost of a step, in steps of the plain network.
        cost: Unit of prices: `seconds`, measured once per shape, or `flops`.

    Raises:
        TypeError, ValueError: As for `DyRep`; or `choose`, or the gain of a branch, is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        ema: nn.Module | None = None,
        branches: Sequence[str] = ALL_BRANCHES,
        choose: Literal["worth", "random"] = "worth",
        strength: float = expansion.STRENGTHS["linear"],
        adjust_interval: int = 1,
        last_adjust_epoch: int = 100,
        grow: int = 8,
        cut_std: float = 0.02,
        cut_ratio: float = 0.1,
        max_cost: float = 1.5,
        cost: Measure = "seconds",
        seed: int = 0,
    ) -> None:
        if choose not in ("worth", "random"):
            raise ValueError(f"choose={choose!r}; use worth or random")
        if set(branches) & set(LINEAR_ONLY):
            raise ValueError(
                f"branches={tuple(branches)}: what {' and '.join(LINEAR_ONLY)} gain is not known; "
                f"choose from {ALL_BRANCHES}"
            )
        self.choose = choose
        self._prices = Prices(cost)
        self._resting: set[str] = set()
        super().__init__(
            model, optimizer, ema=ema, branches=branches, form="linear", strength=strength,
            adjust_interval=adjust_interval, last_adjust_epoch=last_adjust_epoch, grow=grow,
            cut_std=cut_std, cut_ratio=cut_ratio, max_cost=max_cost, cost=cost, seed=seed,
        )  # fmt: skip

    def state_dict(self) -> EvolverState:
        prices = self._prices.state_dict()
        return {**super().state_dict(), "resting": sorted(self._resting), "prices": prices}

    def load_state_dict(self, state: EvolverState) -> None:
        self._resting = set(state["resting"])
        if "prices" in state:  # missing in states of older versions
            self._prices.load_state_dict(state["prices"])
        super().load_state_dict(state)

    def _watch(self) -> None:
        assert self.strength is not None
        promise = Promise(self.strength)
        promise.watch_branches(pricing.open_branches(self.model, self.branches), self.model)
        self._saliency = promise

    def _grow_best(self, batches: list[Tensor], generator: torch.Generator) -> Iterator[Event]:
        ranked = self._ranked(batches[0], generator)
        if not ranked:
            self._resting = set()
            return
        chosen = self._affordable(ranked, pricing.spent(self.model, batches[0], self._prices))
        self._resting = {candidate.path for candidate in chosen}
        best = {c.path: c.worth for c in reversed(ranked)}
        ranking = sorted(best.items(), key=lambda pair: -pair[1])
        for path in dict.fromkeys(candidate.path for candidate in chosen):
            here = [candidate for candidate in chosen if candidate.path == path]
            event = self._add(path, [candidate.branch for candidate in here], batches, generator)
            price, worth = sum(c.price for c in here), {c.branch: c.worth for c in here}
            why = [_why(candidate, ranked) for candidate in here]
            yield dataclasses.replace(event, saliency=ranking, price=price, worth=worth, chosen=why)

    def _ranked(self, batch: Tensor, generator: torch.Generator) -> list[Candidate]:
        """Return the branches that may be grown, with prices, the best first."""
        assert isinstance(self._saliency, Promise)
        awake = [one for one in self._saliency.gains() if one.path not in self._resting]
        if self.choose == "worth":
            gaining = [one for one in awake if one.gain > 0]
            idle = {one.path for one in awake} - {one.path for one in gaining}
            self.left.update(dict.fromkeys(sorted(idle), NO_GAIN))
            awake = gaining
        ranked = pricing.candidates(self.model, awake, batch, self._prices)
        if self.choose == "random":
            order = torch.randperm(len(ranked), generator=generator).tolist()
            ranked.sort(key=lambda c: (c.path, c.branch))
            ranked = [ranked[index] for index in order]
        return ranked

    def _affordable(self, ranked: list[Candidate], spent: float) -> list[Candidate]:
        """Return the branches that fit into the budget; add the others to `left`."""
        limit = self.budget.limit
        assert limit is not None
        chosen: list[Candidate] = []
        for candidate in ranked:
            if len(chosen) == self.grow:
                break
            if spent + candidate.price <= limit:
                chosen.append(candidate)
                spent += candidate.price
            else:
                self.left[candidate.path] = (
                    f"{candidate.branch} would make a step cost {spent + candidate.price:.2f} "
                    f"plain ones (max_cost {limit:g})"
                )
        for candidate in chosen:
            self.left.pop(candidate.path, None)
        return chosen

    def _add(
        self, path: str, names: list[str], batches: list[Tensor], generator: torch.Generator
    ) -> Event:
        """Grow a layer; measure its errors on noise, because forwards of the network are slow."""
        assert self.strength is not None
        before = outputs(self.model, path, [])
        block = expansion.add(self.model, path, names, generator, self.strength)
        if self.ema is not None:
            expansion.add_alike(self.ema, path, names, block)
        event = self._event("grow", path, block, before, None, [])
        return dataclasses.replace(event, flops=cost_of(self.model, batches[0]).flops)


def _why(chosen: Candidate, ranked: list[Candidate]) -> Chosen:
    return {
        "branch": chosen.branch,
        "gain": chosen.gain,
        "price": chosen.price,
        "place": 1 + ranked.index(chosen),
        "of": len(ranked),
    }
