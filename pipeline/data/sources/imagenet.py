"""Read ILSVRC 2012 in its usual layouts; classes are sorted by WordNet id, as in torchvision.

Training: `ROOT/train/WNID/*.JPEG`. Validation: `ROOT/val/WNID/*.JPEG`, or all images in `ROOT/val/`
and one file in `ROOT/` with their classes: `LOC_val_solution.csv` (Kaggle), the development kit
`ILSVRC2012_devkit_t12/` or `.tar.gz`, or `val.txt` with a line `NAME WNID` or `NAME LABEL` each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.sources import truth
from pipeline.data.sources.base import Item, Listing, lacking
from pipeline.data.sources.folders import ImageFolder, add_to_listing
from pipeline.data.sources.tree import fact, folders, tree
from pipeline.display.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.data import Images

IMAGES = 1_281_167 + 50_000
SOLUTION, KIT, LIST = "LOC_val_solution.csv", "ILSVRC2012_devkit_t12", "val.txt"
LISTS = (SOLUTION, KIT, f"{KIT}.tar.gz", LIST)  # the first that exists is read
TRUTH = f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt"


class ImageNet(ImageFolder):
    """ImageNet: 1000 classes, 1.28 million training images and 50,000 validation images."""

    def __init__(self, data: Images) -> None:
        super().__init__(data)
        self.splits = ("train", "val")
        self._flat = (self.root / "val").is_dir() and not folders(self.root / "val")
        if self._flat:
            self.splits = ("train",)

    def count(self) -> int:
        self._check_there()
        classes = self._classes()
        if self._flat:
            self._validation(Listing(classes=classes, splits={}), facts=False)
        return IMAGES  # counting a million files takes minutes on a shared file system

    def _listing(self, facts: bool) -> Listing:
        found = super()._listing(facts)
        if self._flat:
            self._validation(found, facts)
        return found

    def _check_there(self) -> None:
        if not (self.root / "train").is_dir() or not (self.root / "val").is_dir():
            raise UserError(
                f"{lacking(self.root, 'train/WNID/*.JPEG with val/')}; get "
                "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org, and point "
                "data.root at the folder that you put them in; they need not be extracted"
            )

    def _validation(self, listing: Listing, facts: bool) -> None:
        """Add the images of a flat folder to a listing, with classes from a list.

        Raises:
            UserError: the list is damaged, or lacks an image.
        """
        found = tree(self.root / "val", facts)
        add_to_listing(listing, found, found.images, "val")
        inside = [f"val/{file.name}" for file in found.images]
        listing.splits["val"] = listed_items(self.root, "val", inside, listing)


def listed_items(root: Path, where: str, inside: list[str], listing: Listing) -> list[Item]:
    """Return the validation items, with classes from a list.

    Args:
        root: folder with the list.
        where: name of the folder or archive of the images, below root.
        inside: names of the images.
        listing: has the classes; the list, and images that it names and that are missing, are
            added to it.

    Raises:
        UserError: there is no image, the list is damaged, or it lacks an image.
    """
    if not inside:
        raise UserError(f"{root / where} has no images")
    images = {truth.stem(name) for name in inside}
    path, entries = _entries(root, where)
    labels = truth.labels(path, entries, listing.classes, images)
    _check_other_lists(root, path, labels, listing.classes)
    missing = sorted(images - labels.keys())
    if missing:
        raise UserError(
            f"{path} names no class for {missing[0]}"
            f"{f' and {len(missing) - 1} more images' if missing[1:] else ''} in "
            f"{root / where}; add them to it, or take them away; see docs/data.md"
        )
    listing.others.append(fact(root, str(path.relative_to(root))))
    listing.passed.extend(
        {"name": name, "reason": f"named in {path.name}, but not in {where}"}
        for name in sorted({entry.name for entry in entries} - images)
    )
    return [Item(name, labels[truth.stem(name)]) for name in inside]


def _check_other_lists(
    root: Path, used: Path, labels: truth.Labels, classes: tuple[str, ...]
) -> None:
    """Refuse a second list that gives another class to an image; other forms do not count.

    Raises:
        UserError: the message names both lists and an image.
    """
    for name in LISTS:
        path = root / name
        if not path.exists() or path in (used, *used.parents):
            continue
        try:
            other = truth.labels(path, _read(path), classes, set(labels))
        except UserError:
            continue
        if differing := sorted(image for image, label in other.items() if label != labels[image]):
            raise UserError(
                f"{used} and {path} give different classes to {differing[0]}; remove the wrong one"
            )


def _entries(root: Path, where: str) -> tuple[Path, list[truth.Entry]]:
    """Return the path of the list of classes that exists, and its entries."""
    for name in LISTS:
        path = root / name
        if path.exists():
            return root / TRUTH if path.is_dir() and name == KIT else path, _read(path)
    raise UserError(
        f"{root / where} holds images without class folders, and none of {SOLUTION}, "
        f"{KIT}/ (or .tar.gz) and {LIST} is in {root} to name their classes"
    )


def _read(path: Path) -> list[truth.Entry]:
    """Return the entries of a list of classes, whose name says its form."""
    if path.name == KIT and path.is_dir():
        return list(truth.kit(path))
    return truth.packed_kit(path, KIT) if path.name.startswith(KIT) else truth.entries(path)
