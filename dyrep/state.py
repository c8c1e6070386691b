"""Define the state of `DyRep` and `Grower` in a checkpoint, as plain data and tensors.

Keys that are not required belong to only one kind of object, or are missing in checkpoints of older
versions.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor


class SaliencyState(TypedDict):
    """Sums over the current interval; only `dyrep.promise.Promise` has `before` and `calls`."""

    paths: list[str]
    sums: Tensor | None
    steps: Tensor | None
    before: NotRequired[list[Tensor]]
    calls: NotRequired[int]


class PricesState(TypedDict):
    """Prices by kind of branch and conv, and the cost of a whole step (FLOPs)."""

    known: dict[str, float]
    whole: float | None


class EvolverState(TypedDict):
    """The state of `DyRep`; only `Grower` has `resting` and `prices`."""

    adjustments: int
    saliency: SaliencyState
    plain_flops: NotRequired[int | None]
    began: NotRequired[dict[str, dict[str, float]]]
    resting: NotRequired[list[str]]
    prices: NotRequired[PricesState]
