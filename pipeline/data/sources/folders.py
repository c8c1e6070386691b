"""A folder per class: `ROOT/{train,val}/CLASS/IMAGE`, or `ROOT/CLASS/IMAGE` to be split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.sources import Item, Listing
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.data import Images

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff",
              ".ppm", ".pgm", ".pnm", ".jp2", ".avif"}  # fmt: skip


class ImageFolder:
    """Images in folders named after their classes, at any depth below them."""

    splits: tuple[str, ...] = ("train", "val")

    def __init__(self, data: Images) -> None:
        assert data.root is not None
        self.root = Path(data.root)
        if data.val_fraction is not None:
            self.splits = ("",)

    def count(self) -> int:
        self._check_there()
        return sum(1 for split in self.splits for name in walk(self.root / split) if image(name))

    def listing(self) -> Listing:
        self._check_there()
        classes = self._classes()
        labels = {name: label for label, name in enumerate(classes)}
        found: dict[str, list[Item]] = {}
        ignored = 0
        for split in self.splits:
            below = f"{split}/" if split else ""
            names = [below + name for name in sorted(walk(self.root / split)) if "/" in name]
            images = [name for name in names if image(name)]
            ignored += len(names) - len(images)
            items = [Item(name, labels[name[len(below) :].split("/")[0]]) for name in images]
            self._check_filled(items, classes, split)
            found[split or "all"] = items
        return Listing(classes=classes, splits=found, ignored=ignored)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def _check_there(self) -> None:
        missing = [path for path in map(self.root.joinpath, self.splits) if not path.is_dir()]
        if missing:
            layout = "CLASS/IMAGE" if self.splits == ("",) else "train/CLASS/IMAGE and val/CLASS/…"
            hint = "" if self.splits == ("",) else "; or set data.val_fraction to split one folder"
            raise UserError(f"{missing[0]} is no folder; data.root needs {layout} below it{hint}")

    def _classes(self) -> tuple[str, ...]:
        """Return the classes: the folders of the first split, in the order of torchvision."""
        first, *others = [folders(self.root / split) for split in self.splits]
        for names in others:
            extra = sorted(names - first)
            if extra:
                raise UserError(
                    f"class '{extra[0]}' is in {self.root / self.splits[1]} but not in "
                    f"{self.root / self.splits[0]}; add or remove it"
                )
        lower = Counter(name.lower() for name in first)
        alike = sorted(name for name in first if lower[name.lower()] > 1)
        if alike:
            raise UserError(
                f"classes '{alike[0]}' and '{alike[1]}' of {self.root} differ by case only; "
                "merge or rename one"
            )
        if len(first) < 2:
            raise UserError(
                f"{self.root / self.splits[0]} has {len(first)} class folders; use at least 2"
            )
        return tuple(sorted(first))

    def _check_filled(self, items: list[Item], classes: tuple[str, ...], split: str) -> None:
        empty = set(range(len(classes))) - {item.label for item in items}
        if empty and split != "val":  # a class may be missing in validation
            name = self.root / split / classes[min(empty)]
            raise UserError(f"{name} has no images; add some or remove the folder")
        if not items:
            raise UserError(f"{self.root / split} has no images")


def folders(path: Path) -> set[str]:
    """Return the names of the folders in a folder; hidden ones are none."""
    with os.scandir(path) as entries:
        return {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}


def image(name: str) -> bool:
    """Whether a file may be an image by its name; what it is, prep finds out."""
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def walk(top: Path) -> Iterator[str]:
    """Yield the files below a folder by their relative names; links are followed, once.

    Raises:
        UserError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    for where, names, files in os.walk(top, followlinks=True, onerror=_refuse):
        stat = Path(where).stat()
        if (stat.st_dev, stat.st_ino) in seen:  # a link that leads back
            names.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        below = os.path.relpath(where, top)
        for name in files:
            if not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}; make it readable, or remove it")
