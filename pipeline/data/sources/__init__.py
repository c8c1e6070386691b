"""Where images come from. A source lists its images, says their classes, and reads them by name.

Nothing is ever downloaded. Light to import: a launch asks only whether the source is there and how
many images it promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from pipeline.config.data import Images


class Item(NamedTuple):
    """One image: its name within the source, and its class."""

    name: str
    label: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a source.

    Args:
        classes: their names, by label.
        splits: `train` and `val` if the source has both, else `all`.
        ignored: how many files are no images by their name, e.g. a README.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    ignored: int = 0


class Source(Protocol):
    """What prep needs of a source."""

    def count(self) -> int:
        """Return how many images there are to train and validate on, quickly.

        Raises:
            UserError: the source is not there; says where to get it and where to put it.
        """

    def listing(self) -> Listing:
        """Return all images, in the same order each time.

        Raises:
            UserError: its layout is none that can be trained on.
        """

    def read(self, name: str) -> bytes:
        """Return an encoded image.

        Raises:
            OSError: it cannot be read.
        """


def source(data: Images) -> Source:
    """Return the source that `data` names."""
    from pipeline.data.sources import arrays, folders, imagenet

    kinds = {
        "digits": arrays.Digits,
        "cifar10": arrays.Cifar,
        "cifar100": arrays.Cifar,
        "synthetic": arrays.Synthetic,
        "imagefolder": folders.ImageFolder,
        "imagenet": imagenet.ImageNet,
    }
    made: Source = kinds[data.name](data)  # type: ignore[attr-defined]
    return made
