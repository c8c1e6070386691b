"""Define the interface of a source: list images with their classes, and read them by name.

Nothing is downloaded. A source is cheap to import, because a launch only checks that its files
exist and counts images.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from pipeline.data.sources.tree import File, Row


def lacking(root: Path, names: str) -> str:
    """Return a message that a folder lacks the files `names`, or that it does not exist."""
    return f"{root} {'holds no' if root.is_dir() else 'is not a folder, so it holds no'} {names}"


def short_side(image: bytes) -> int | None:
    """Return the short side of an encoded image, pixels; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as opened:
            return min(opened.size)
    except Exception:  # a damaged image raises any; prep reports it
        return None


class Item(NamedTuple):
    """The name of an image within its source, and its label."""

    name: str
    label: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a source.

    Args:
        classes: names of the classes, by label.
        splits: items of `train` and `val` if the source has both splits, else of `all`.
        passed: name and reason of each ignored file or folder, e.g. a README.
        facts: size (bytes) and modification time (ns) of each image, in order; empty if images are
            not files of their own.
        others: all other files that were read: archives, lists of labels.
        offsets: offset of each image in its file, in order, bytes; empty if `read` needs none.
        groups: number of the row group that contains each image in its file, in order; empty if
            images can be read in any order.
        folders: modification time of each folder with images, ns, by its name within the source.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Item]]
    passed: list[Row] = field(default_factory=list)
    facts: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    groups: array[int] = field(default_factory=lambda: array("q"))
    others: list[File] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)


class Source(Protocol):
    """The methods of a source that prep calls."""

    def count(self) -> int:
        """Return the number of images, or an estimate that is quick to compute.

        Raises:
            UserError: the files are missing; the message says where to get and to put them.
        """

    def listing(self) -> Listing:
        """Return all images, always in the same order.

        Raises:
            UserError: the layout of the files is not supported.
        """

    @property
    def read(self) -> Callable[..., bytes]:
        """A function that returns the encoded bytes of an image, given its name.

        If the listing has offsets, the function takes the offset as well. It raises OSError if the
        image cannot be read.
        """
