"""Read images that the user's function or class returns or yields.

A map-style data set has a length and is indexed by number; all processes of prep read it. An
iterator is read once and written to disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.custom.call import THEIRS, call, load, raised
from pipeline.data.sources.base import Listing, short_side
from pipeline.data.sources.classes import Label, Labelled, labelled, unknown
from pipeline.data.sources.pairs import Unfit, class_names, label, pair
from pipeline.data.sources.spool import Spool
from pipeline.display.errors import UserError, gist

if TYPE_CHECKING:
    from pipeline.config.data import Custom as Settings

SPLITS = ("train", "val")


class Custom:
    """Images of `data.target`; an image is named `NUMBER`, or `SPLIT/NUMBER` if there are splits.

    Args:
        data: the settings.
        scratch: folder for the images of an iterator.
    """

    def __init__(self, data: Settings, scratch: Path | None = None) -> None:
        self._data, self._scratch = data, scratch
        self._spools: dict[str, Spool] = {}
        self._where = f"data.target={data.target}"

    def sizes(self) -> tuple[int | None, int | None, int | None]:
        """Return the numbers of training images and classes, and the short side of an image.

        What is unknown is None.

        Raises:
            UserError: the target does not give images with classes.
        """
        first = next(iter(self._given))
        images = [self._try(split, given) for split, given in self._given.items()]
        training = self._given[first]
        known = len(training) if _indexed(training) else None
        if known is not None and first == "all":
            known -= math.ceil(known * (self._data.val_fraction or 0))
        return known, len(self._classes) or None, short_side(images[0])

    def count(self) -> int:
        return self.sizes()[0] or 0

    def listing(self) -> Listing:
        numbers: dict[Label, Label] = {name: n for n, name in enumerate(self._classes)}
        rows: Labelled = {
            split: [(name, numbers.get(label, label)) for name, label in self._rows(split)]
            for split in self._given
        }
        classes, items = labelled(rows, self._classes, Path(self._data.target))
        return Listing(classes=classes, splits=items)

    def read(self, name: str) -> bytes:
        split, _, number = name.rpartition("/")
        table = self._table(split or "all")
        try:
            image, found = pair(table[int(number)])
            if (targets := _targets(table)) is not None and label(targets[int(number)]) != found:
                raise Unfit(f"its class is {found!r}, but targets has {targets[int(number)]!r}")
        except Unfit as error:
            raise OSError(str(error)) from None
        except THEIRS as error:
            raise OSError(f"it {raised(error)}") from None
        return image

    @cached_property
    def _given(self) -> dict[str, Any]:
        """The target's images, by split; `all` if prep splits them."""
        root = {} if self._data.root is None else {"root": self._data.root}
        section = self._data.model_copy(update={"args": root | (self._data.args or {})})
        given, fraction = call("data.target", section), self._data.val_fraction
        if not isinstance(given, Mapping):
            if fraction is None:
                raise UserError(
                    f"{self._where} returns one set of images; data.val_fraction=0.1 holds a tenth "
                    "out, or return {'train': …, 'val': …}"
                )
            return {"all": given}
        if set(given) != set(SPLITS):
            keys = ", ".join(map(repr, given))
            raise UserError(f"{self._where} returns a mapping of {keys}; name train and val")
        if fraction is not None:
            raise UserError(
                f"{self._where} returns train and val; launch with data.val_fraction=null, which "
                "takes them as they are"
            )
        return {split: given[split] for split in SPLITS}

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Names of the classes, from the training images or else from the target."""
        given = next(iter(self._given.values()))
        target = load("data.target", self._data)
        return class_names(given, self._where) or class_names(target, self._where)

    def _table(self, split: str) -> Any:
        """Return an object that is indexed by the number of an image."""
        assert self._scratch, "only prep reads more than the first image"
        spool = self._spools.setdefault(split, Spool(self._scratch, split))
        if spool.full:
            return spool
        given = self._given[split]
        if _indexed(given):
            return given
        spool.fill(self._pairs(given))
        return spool

    def _rows(self, split: str) -> list[tuple[str, Label]]:
        table = self._table(split)
        found = self._labels(table)
        if found is None:
            found = [label for _, label in self._pairs(table[n] for n in range(len(table)))]
        prefix = "" if split == "all" else f"{split}/"
        return [(f"{prefix}{number:08d}", label) for number, label in enumerate(found)]

    def _labels(self, table: Any) -> list[Label] | None:
        """Return the classes of all images; None if that needs reading the images.

        Raises:
            UserError: the number of classes is not that of the images.
        """
        if (targets := _targets(table)) is None:
            return None
        if len(targets) != len(table):
            raise UserError(
                f"{self._where} has {len(table)} images, but {len(targets)} classes in "
                "targets; give each image one"
            )
        found: list[Label] = []
        for number, value in enumerate(targets):
            try:
                found.append(label(value))
            except Unfit as error:
                raise UserError(f"{self._where}: targets, image {number}: {error}") from None
        return found

    def _pairs(self, given: Any) -> Iterator[tuple[bytes, Label]]:
        """Yield images and labels in order.

        Raises:
            UserError: the user's code raises, or an item is not a pair of image and class.
        """
        number = 0
        try:
            for item in given:
                yield pair(item)
                number += 1
        except Unfit as error:
            raise UserError(f"{self._where}: image {number}: {error}") from None
        except UserError:
            raise
        except THEIRS as error:
            raise UserError(f"{self._where} {raised(error)} at image {number}") from None

    def _try(self, split: str, given: Any) -> bytes:
        """Return the first image; read it twice from a map-style data set, to see if it changes.

        Raises:
            UserError: the image is missing or unusable, or differs the second time.
        """
        name = "" if split == "all" else f"{split} of "
        where = f"{name}{self._where}"
        try:
            first = [next(iter(self._pairs(_in_turn(given)))) for _ in range(1 + _indexed(given))]
        except StopIteration:
            raise UserError(f"{where} gives no image") from None
        except TypeError as error:
            raise UserError(
                f"{where} returns {type(given).__name__}, which gives no images ({gist(error)}); "
                "yield pairs of an image and its class, or return a map-style data set"
            ) from None
        if first[0] != first[-1]:
            raise UserError(
                f"{where} gives another image 0 each time it is read; leave random changes to "
                "train.augment, which draws new ones in each epoch"
            )
        labels = self._labels(given) or [first[0][1]]
        if labels[0] != first[0][1]:
            raise UserError(
                f"{where} gives image 0 the class {first[0][1]!r}, but its targets begin with "
                f"{labels[0]!r}; make them agree"
            )
        self._check_known(split, labels)
        return first[0][0]

    def _check_known(self, split: str, labels: list[Label]) -> None:
        """Refuse a class that is not among the named classes."""
        known = {*range(len(self._classes)), *self._classes}
        for number, value in enumerate(labels):
            if known and value not in known:
                name = f"{number:08d}" if split == "all" else f"{split}/{number:08d}"
                where = Path(self._data.target) / name
                raise UserError(unknown(where, value, True, split, len(self._classes)))


def _indexed(given: Any) -> bool:
    """Whether images can be read by number, as from torch's map-style data sets."""
    streams = any(kind.__name__ == "IterableDataset" for kind in type(given).__mro__)
    return hasattr(given, "__len__") and hasattr(given, "__getitem__") and not streams


def _in_turn(given: Any) -> Any:
    return (given[number] for number in range(len(given))) if _indexed(given) else iter(given)


def _targets(table: Any) -> Any:
    """Return the labels of all images, if they are known without reading the images."""
    targets = getattr(table, "targets", None)
    return targets if hasattr(targets, "__len__") and hasattr(targets, "__getitem__") else None
