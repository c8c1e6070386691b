"""Events: one per layer that grew or lost branches at an adjustment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict


class Chosen(TypedDict):
    """Why a branch was grown: its gain, its price, and its place in the order of the candidates."""

    branch: str
    gain: float
    price: float
    place: int
    of: int


@dataclass(frozen=True)
class Event:
    """A change of structure.

    `branches` are the branches after the change; `saliency` is the ranking then, best first.
    `error_eval` and `error_train` are the largest change of the output of the layer relative to its
    largest value, on a calibration batch; in train mode most of it is mean and scale of that batch,
    which a batch norm behind the layer removes. For a conv inside a linear block it is the output
    of the block. `parameters` and `flops` (per image) are those of the whole network; `flops` is
    None without a calibration batch. With `Grower`, `price` is the additional cost of a step in
    steps of the plain network, `worth` the predicted gain per price of each new branch, and
    `chosen` says why each was chosen: it was taken at a `place` among `of` candidates.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain data for JSON."""
        return asdict(self)
