"""Define events: one for each layer that grew or lost branches at an adjustment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, TypedDict


class Chosen(TypedDict):
    """The reason for a branch: its gain, its price, and its place among the ordered candidates."""

    branch: str
    gain: float
    price: float
    place: int
    of: int


@dataclass(frozen=True)
class Event:
    """A change of structure.

    `branches` are the branches after the change; `saliency` is the ranking at that time, best
    first. `error_eval` and `error_train` are the largest change of the layer's output relative to
    its largest value, on a calibration batch. In train mode, most of this change is in mean and
    scale of the batch, which a batch norm behind the layer removes. For a conv inside a linear
    block, the output of the block is compared. `parameters` and `flops` (per image) are those of
    the whole network; `flops` is None without a calibration batch. With `Grower`, `price` is the
    additional cost of a step in steps of the plain network, `worth` is the predicted gain per price
    of each new branch, and `chosen` gives the reason for each: it was taken at a `place` among `of`
    candidates.
    """

    action: Literal["grow", "cut"]
    layer: str
    branches: list[str]
    saliency: list[tuple[str, float]] | None
    error_eval: float
    error_train: float
    parameters: int
    flops: int | None
    price: float | None = None
    worth: dict[str, float] | None = None
    chosen: list[Chosen] | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the event as plain data for JSON."""
        return asdict(self)
