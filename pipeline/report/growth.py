"""Explain the rows of `growth.jsonl` in a report: the reason for each branch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NotRequired, TypedDict


class Chosen(TypedDict):
    """The reason for a branch, as in `dyrep.Event.chosen`."""

    branch: str
    gain: float
    price: float
    place: int
    of: int


class Change(TypedDict):
    """A row of `growth.jsonl`: a layer grew or lost branches."""

    epoch: int
    step: int
    action: str
    layer: str
    branches: list[str]
    saliency: list[tuple[str, float]] | None
    chosen: NotRequired[list[Chosen] | None]


@dataclass
class Choice:
    """The reason why a single branch was grown.

    `gain` is relative to the largest gain of that adjustment; `price` of the branch and
    `layer_price` of all branches of the layer are in steps of the plain network; the branch was
    taken at a `place` among `of` candidates.
    """

    epoch: int
    layer: str
    branch: str
    gain: float
    price: float
    layer_price: float
    place: int
    of: int


def choices(growth: list[Change]) -> Iterator[Choice]:
    """Yield the reason for each branch, for growth by `dyrep.Grower`."""
    prices: dict[tuple[str, str], float] = {}
    for row in growth:
        layer, chosen = row["layer"], row.get("chosen") or []
        prices |= {(layer, one["branch"]): one["price"] for one in chosen}
        together = [c for r in growth if r["step"] == row["step"] for c in r.get("chosen") or []]
        for one in chosen:
            yield Choice(
                epoch=row["epoch"],
                layer=layer,
                branch=one["branch"],
                gain=one["gain"] / (max(c["gain"] for c in together) or 1),
                price=one["price"],
                layer_price=sum(prices.get((layer, name), 0.0) for name in row["branches"]),
                place=one["place"],
                of=one["of"],
            )


def layers(growth: list[Change]) -> list[str]:
    """Return the layers that were ranked or changed, in the order of the network."""
    names = {name for row in growth for name, _ in row["saliency"] or []}
    return sorted(names | {row["layer"] for row in growth}, key=_natural)


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]
