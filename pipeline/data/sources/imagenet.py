"""ILSVRC 2012 as people have it on disk; classes in the order of torchvision, by WordNet id.

Training: `ROOT/train/WNID/*.JPEG`. Validation: `ROOT/val/WNID/*.JPEG`, or all in `ROOT/val/` and in
`ROOT/` one file that tells their classes: `LOC_val_solution.csv` (Kaggle), the development kit
`ILSVRC2012_devkit_t12/`, or `val.txt` with a line `NAME WNID` or `NAME LABEL` for each.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.sources import Item, Listing
from pipeline.data.sources.folders import ImageFolder, folders, image, walk
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.data import Images

IMAGES = 1_281_167 + 50_000
SOLUTION, KIT, LIST = "LOC_val_solution.csv", "ILSVRC2012_devkit_t12", "val.txt"


class ImageNet(ImageFolder):
    """The 1000 classes, 1.28 million images to train on and 50,000 to validate on."""

    def __init__(self, data: Images) -> None:
        super().__init__(data)
        self.splits = ("train", "val")
        self._flat = (self.root / "val").is_dir() and not folders(self.root / "val")

    def count(self) -> int:
        self._check_there()
        return IMAGES  # counting a million files takes minutes on a shared file system

    def listing(self) -> Listing:
        if not self._flat:
            return super().listing()
        self._check_there()
        self.splits = ("train",)
        train = super().listing()
        labels = {name: label for label, name in enumerate(train.classes)}
        known = dict(self._truth(labels))
        items = []
        for name in sorted(filter(image, walk(self.root / "val"))):
            if Path(name).stem not in known:
                raise UserError(
                    f"no class of {self.root / 'val' / name} is on record; see docs/data.md"
                )
            items.append(Item(f"val/{name}", known[Path(name).stem]))
        return Listing(classes=train.classes, splits={**train.splits, "val": items})

    def _check_there(self) -> None:
        if not (self.root / "train").is_dir() or not (self.root / "val").is_dir():
            raise UserError(
                f"{self.root} is not ImageNet: it needs train/WNID/*.JPEG and val/. Get "
                "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org, extract "
                "them there (the archives within train, too), and point data.root at the folder"
            )

    def _truth(self, labels: dict[str, int]) -> Iterator[tuple[str, int]]:
        """Yield the label of each validation image, by its name without extension."""
        if (self.root / SOLUTION).exists():
            with (self.root / SOLUTION).open(newline="") as file:
                for row in csv.DictReader(file):
                    yield row["ImageId"], labels[row["PredictionString"].split()[0]]
        elif (self.root / KIT).is_dir():
            yield from self._kit(labels)
        elif (self.root / LIST).exists():
            for line in (self.root / LIST).read_text().splitlines():
                name, what = line.split()
                yield Path(name).stem, labels[what] if what in labels else int(what)
        else:
            raise UserError(
                f"{self.root / 'val'} holds images without class folders, and none of {SOLUTION}, "
                f"{KIT}/ and {LIST} is in {self.root} to tell their classes"
            )

    def _kit(self, labels: dict[str, int]) -> Iterator[tuple[str, int]]:
        """Read the development kit, whose own numbers are neither sorted nor zero-based."""
        from scipy.io import loadmat

        data = self.root / KIT / "data"
        synsets = loadmat(str(data / "meta.mat"), squeeze_me=True)["synsets"]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        truth = (data / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
        for number, own in enumerate(truth, start=1):
            yield f"ILSVRC2012_val_{number:08d}", labels[names[int(own)]]
