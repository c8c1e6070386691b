"""What happened to a network: one event per layer that grew or lost branches."""

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

    `branches` are those present afterwards; `saliency` is the ranking that led to growing, best
    first; errors are the largest difference at the output of the layer relative to its largest
    value, on a calibration batch (in train mode most of it is mean and scale of that batch, which a
    BN behind the layer takes out again); `parameters` and `flops` are the whole network's, the
    flops None where no calibration batch was given. Of a conv inside a linear block the output is
    that of the block. `price` is what a step costs more with what grew, in steps of the plain
    network, and `worth` the predicted gain per price of each new branch, where growing is priced;
    `chosen` says of each why it was chosen: its `place` is among `of` candidates in the order in
    which they were taken.
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
        """Return the event as JSON-able data."""
        return asdict(self)
