"""What every source has: it lists its images, says their classes, and reads them by name.

Nothing is ever downloaded. Light to import: a launch asks only whether the source is there and how
many images it promises.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from pipeline.data.sources.tree import File, Row


def lacking(root: Path, names: str) -> str:
    """Say that a folder does not hold the files `names`, or that there is no such folder."""
    return f"{root} {'holds no' if root.is_dir() else 'is no folder, so it holds no'} {names}"


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
        passed: name and reason of the files and folders that were passed over, e.g. a README.
        facts: size (bytes) and time of change (ns) of each image in turn; empty if the images are
            not in files of their own.
        others: the files that the rest was read from: archives, lists of labels.
        places: where each image in turn begins in its file, bytes; empty if `read` needs no such.
        groups: the number of the part of a file, e.g. the row group, that each image in turn is
            read with; empty if each can be read alone.
        folders: when each folder with images was changed, ns, by its name within the source.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    passed: list[Row] = field(default_factory=list)
    facts: array[int] = field(default_factory=lambda: array("q"))
    places: array[int] = field(default_factory=lambda: array("q"))
    groups: array[int] = field(default_factory=lambda: array("q"))
    others: list[File] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)


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

    @property
    def read(self) -> Callable[..., bytes]:
        """Return what reads an encoded image, given its name, and its place if the listing has any.

        It raises an OSError if it cannot.
        """
