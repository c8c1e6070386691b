"""Read images in a folder per class: `ROOT/{train,val}/CLASS/IMAGE`, or `ROOT/CLASS/IMAGE`.

Prep splits the images of the second layout.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.sources import layout, names
from pipeline.data.sources.base import Item, Listing, short_side
from pipeline.data.sources.tree import File, Row, Tree, folders, read, tree
from pipeline.display.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.data import Images


LOOSE = "in no class folder"


class ImageFolder:
    """Images in folders named by class, at any depth below the class folder."""

    splits: tuple[str, ...] = ("train", "val")

    def __init__(self, data: Images) -> None:
        assert data.root is not None
        self.root = Path(data.root)
        if data.val_fraction is not None:
            self.splits = ("",)

    def count(self) -> int:
        return sum(len(items) for items in self._listing(facts=False).splits.values())

    def listing(self) -> Listing:
        return self._listing(facts=True)

    def read(self, name: str) -> bytes:
        return read(self.root / name)

    def class_count(self) -> int:
        """Return the number of classes, without listing the images."""
        return len(self._classes())

    def first_side(self) -> int | None:
        """Return the short side of the first image, pixels; None if it cannot be read."""
        folder = self.root / self.splits[0] / self._classes()[0]
        for file in tree(folder, facts=False).images[:1]:
            with suppress(OSError):
                return short_side(read(folder / file.name))
        return None

    def _listing(self, facts: bool) -> Listing:
        self._check_there()
        classes = self._classes()
        labels = {name: label for label, name in enumerate(classes)}
        found = Listing(classes=classes, splits={})
        for split in self.splits:
            files = add(found, tree(self.root / split, facts), split)
            items = [Item(*_labelled(file, split, labels)) for file in files]
            flat = sum(row["reason"] == LOOSE for row in found.passed if _in(split, row["name"]))
            self._check_filled(items, classes, split, flat)
            found.splits[split or "all"] = items
        return found

    def _check_there(self) -> None:
        layout.check(self.root, split=self.splits == ("",))

    def _classes(self) -> tuple[str, ...]:
        """Return the classes: the folders of the first split, in the order of torchvision."""
        first, *others = self.splits
        there = folders(self.root / first)
        names.check(there, self.root / first)
        for split in others:
            names.check_known(
                folders(self.root / split), there, self.root / split, self.root / first
            )
        if len(there) < 2:
            raise UserError(
                f"{self.root / first} has {len(there)} class folder{'s' * (len(there) != 1)}; "
                "use at least 2" + layout.hint(self.root / first)
            )
        return tuple(sorted(there))

    def _check_filled(
        self, items: list[Item], classes: tuple[str, ...], split: str, flat: int
    ) -> None:
        empty = set(range(len(classes))) - {item.label for item in items}
        if empty and split != "val":  # the validation split may lack a class
            name = self.root / split / classes[min(empty)]
            raise UserError(f"{name} has no images; add some or remove the folder")
        if not items:
            many = f", but {flat} that are in none" if flat else ""
            raise UserError(
                f"{self.root / split} has no images in class folders{many}; put each into "
                f"{self.root / split}/CLASS/, or set data.val_fraction and data.root="
                f"{self.root / 'train'} to split train/; data=imagenet reads a list of classes"
            )


def add(listing: Listing, found: Tree, split: str) -> list[File]:
    """Add the images in class folders of a split to a listing; return their items."""
    files = [file for file in found.images if "/" in file.name]
    loose = [file.name for file in found.images if "/" not in file.name]
    add_to_listing(listing, found, files, split)
    listing.passed.extend(_row(split, name, LOOSE) for name in loose)
    return files


def add_to_listing(listing: Listing, found: Tree, files: list[File], split: str) -> None:
    """Add sizes and times of the images of a split, and the ignored files, to a listing."""
    for file in files:
        listing.facts.extend(file[1:])
    listing.passed.extend(_row(split, row["name"], row["reason"]) for row in found.passed)
    listing.folders.update({_below(split, name): t for name, t in found.folders.items()})


def _row(split: str, name: str, reason: str) -> Row:
    return {"name": _below(split, name), "reason": reason}


def _in(split: str, name: str) -> bool:
    return name.startswith(f"{split}/")


def _below(split: str, name: str) -> str:
    return "/".join(filter(None, (split, name)))


def _labelled(file: File, split: str, labels: dict[str, int]) -> tuple[str, int]:
    return _below(split, file.name), labels[file.name.partition("/")[0]]
