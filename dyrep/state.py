"""What a checkpoint keeps of `DyRep` and `Grower`, as plain data and tensors.

Keys that are not required are those of one kind of object, or missing in checkpoints of older
versions.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor


class SaliencyState(TypedDict):
    """Sums over the running interval; `before` and `calls` are those of `dyrep.promise.Promise`."""

    paths: list[str]
    sums: Tensor | None
    steps: Tensor | None
    before: NotRequired[list[Tensor]]
    calls: NotRequired[int]


class PricesState(TypedDict):
    """Prices by kind of branch and conv, and what a whole step costs (FLOPs)."""

    known: dict[str, float]
    whole: float | None


class EvolverState(TypedDict):
    """The state of `DyRep`; `resting` and `prices` are those of `Grower`."""

    adjustments: int
    saliency: SaliencyState
    plain_flops: NotRequired[int | None]
    began: NotRequired[dict[str, dict[str, float]]]
    resting: NotRequired[list[str]]
    prices: NotRequired[PricesState]
