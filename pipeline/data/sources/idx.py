"""Read MNIST and data sets in its format: idx files, gzipped or not.

Format: http://yann.lecun.com/exdb/mnist. Torchvision's reader is not used, because it needs torch
and folders of its own, and reads a truncated file as a smaller one.
"""

from __future__ import annotations

import gzip
import math
import os
import string
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.sources.arrays import png
from pipeline.data.sources.base import Item, Listing, lacking
from pipeline.data.sources.tree import fact
from pipeline.display.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.config.data import Emnist as EmnistSettings
    from pipeline.config.data import Mnist as MnistSettings

DIGITS = tuple(string.digits)
CLASSES = {
    "mnist": DIGITS,
    "fashion_mnist": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                      "Sneaker", "Bag", "Ankle boot"),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}  # fmt: skip
FROM = {
    "mnist": "",
    "fashion_mnist": " from github.com/zalandoresearch/fashion-mnist, or with `apt install "
    "dataset-fashion-mnist`",
    "kmnist": " from codh.rois.ac.jp/kmnist",
    "emnist": " (gzip.zip) from www.nist.gov/itl/products-and-services/emnist-dataset",
}
ALIKE = set(
    "cijklmopsuvwxyz"
)  # letters of which the merged splits of EMNIST join upper and lower case
MERGED = DIGITS + tuple(sorted(set(string.ascii_letters) - ALIKE))
EMNIST = {
    "byclass": DIGITS + tuple(string.ascii_uppercase + string.ascii_lowercase),
    "bymerge": MERGED,
    "balanced": MERGED,
    "letters": tuple(string.ascii_lowercase),
    "digits": DIGITS,
    "mnist": DIGITS,
}
RAW = ("", "raw", "gzip", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "EMNIST/raw")


class Mnist:
    """Grey 28x28 images in four idx files: images and labels of both splits."""

    first = 0  # label of the first class

    def __init__(self, data: MnistSettings | EmnistSettings, scratch: Path | None = None) -> None:
        self._scratch = scratch
        self.root, self.name = Path(data.root), data.name
        self.prefixes = {"train": "train", "val": "t10k"}
        self.classes = CLASSES.get(data.name, ())

    def count(self) -> int:
        return sum(len(self._labels(split)) for split in self._files)

    def listing(self) -> Listing:
        splits = {split: self._items(split) for split in self._files}
        paths = [path for pair in self._files.values() for path in pair]
        others = [fact(self.root, str(path.relative_to(self.root))) for path in paths]
        return Listing(classes=self.classes, splits=splits, others=others)

    def read(self, name: str) -> bytes:
        split, _, number = name.partition("-")
        return png(self._upright(self._images(split)[int(number)]))

    def _upright(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def _images(self, split: str) -> np.ndarray:
        return self._train if split == "train" else self._val

    @cached_property
    def _train(self) -> np.ndarray:
        return content(self._files["train"][0], self._scratch)

    @cached_property
    def _val(self) -> np.ndarray:
        return content(self._files["val"][0], self._scratch)

    def _items(self, split: str) -> list[Item]:
        self._images(split)  # finds damage before the first image is needed
        return [Item(f"{split}-{n:06d}", label) for n, label in enumerate(self._labels(split))]

    def _labels(self, split: str) -> list[int]:
        """Return the class of each image of a split.

        Raises:
            UserError: a file's length contradicts its header, the number of labels differs from
                the number of images, or a label is not a class.
        """
        images, labels = self._files[split]
        check_length(images)
        count, ids = shape(images)[0], content(labels).astype(int) - self.first
        if len(ids) != count:
            raise UserError(
                f"{labels} has {len(ids)} labels, {images} has {count} images: they do not belong "
                "together; get both again"
            )
        if not count:
            raise UserError(f"{images} has no images; get it again")
        wrong = ids[(ids < 0) | (ids >= len(self.classes))]
        if len(wrong):
            raise UserError(
                f"{labels} has a label {wrong[0] + self.first}; those of data={self.name} go from "
                f"{self.first} to {self.first + len(self.classes) - 1}"
            )
        found: list[int] = ids.tolist()
        return found

    @cached_property
    def _files(self) -> dict[str, tuple[Path, Path]]:
        """Return the files of images and labels of both splits.

        Raises:
            UserError: one of the files is missing.
        """
        return {
            split: (self._file(f"{prefix}-images-idx3-ubyte", 3),
                    self._file(f"{prefix}-labels-idx1-ubyte", 1))
            for split, prefix in self.prefixes.items()
        }  # fmt: skip

    def _file(self, name: str, dimensions: int) -> Path:
        spelt = (name, name.replace("-idx", ".idx"))
        paths = [self.root / raw / f"{one}{end}" for raw in RAW for one in spelt for end in ENDS]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise UserError(
                f"{lacking(self.root, f'{name} or {name}.gz')}; get the four files of "
                f"data={self.name}{FROM[self.name]} and point data.root at their folder"
            )
        if len(shape(path)) != dimensions:
            raise UserError(f"{path} is no {name}: it has {len(shape(path))} dimensions")
        return path


class Emnist(Mnist):
    """EMNIST, whose files hold transposed images."""

    def __init__(self, data: EmnistSettings, scratch: Path | None = None) -> None:
        super().__init__(data, scratch)
        self.classes = EMNIST[data.split]
        self.prefixes = {"train": f"emnist-{data.split}-train", "val": f"emnist-{data.split}-test"}
        self.first = int(data.split == "letters")

    def _upright(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.T


ENDS = ("", ".gz")
BYTES = b"\0\0\x08"  # first bytes of an idx file of unsigned bytes


def shape(path: Path) -> tuple[int, ...]:
    """Return the shape of the array in an idx file, from its header.

    Raises:
        UserError: the file is not an idx file of bytes, or cannot be read.
    """
    head = _read(path, 4)
    if len(head) < 4 or head[:3] != BYTES or head[3] not in (1, 3):
        raise UserError(f"{path} is not an idx file of bytes; get it again")
    sizes = _read(path, 4 + 4 * head[3])[4:]
    if len(sizes) < 4 * head[3]:
        raise UserError(_cut(path, 4 + len(sizes), 4 + 4 * head[3]))
    return tuple(int.from_bytes(sizes[n : n + 4]) for n in range(0, len(sizes), 4))


def check_length(path: Path) -> None:
    """Refuse an idx file that was cut off, by its size, without reading all of it.

    A gzip file ends with the length of its content modulo 2^32 (RFC 1952). If it has several
    members, it ends with the length of the last. So a file with an unexpected length at its end is
    read completely.

    Raises:
        UserError: the file is shorter or longer than its header says.
    """
    wanted = _length(shape(path))
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if path.suffix == ".gz":
            file.seek(max(size - 4, 0))
            size = int.from_bytes(file.read(4), "little")
            wanted %= 2**32
    if size != wanted:
        content(path)


def content(path: Path, scratch: Path | None = None) -> np.ndarray:
    """Return the uint8 array of an idx file, (N, H, W) or (N,); memory-mapped if not compressed.

    Args:
        path: the file.
        scratch: a folder; if given, a compressed file is unpacked to it, once for all processes.

    Raises:
        UserError: the file is shorter or longer than its header says.
    """
    import numpy as np

    sizes = shape(path)
    wanted = _length(sizes)
    begin = wanted - math.prod(sizes)
    packed = path.suffix == ".gz" and scratch is None
    file = _unpacked(path, scratch) if path.suffix == ".gz" and scratch else path
    whole = _read(path) if packed else b""
    found = len(whole) if packed else file.stat().st_size
    if found != wanted:
        raise UserError(_cut(path, found, wanted))
    if packed:
        return np.frombuffer(whole, np.uint8, offset=begin).reshape(sizes)
    return np.memmap(file, np.uint8, "r", begin, sizes)


def _unpacked(path: Path, scratch: Path) -> Path:
    """Return the unpacked file, which appears in the folder when it is complete."""
    file = scratch / path.stem
    if not file.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        half = scratch / f"{file.name}.half"
        half.write_bytes(_read(path))
        half.replace(file)
    return file


def _length(sizes: tuple[int, ...]) -> int:
    """Return the bytes of an idx file with an array of these sizes, header included."""
    return 4 + 4 * len(sizes) + math.prod(sizes)


def _cut(path: Path, found: int, wanted: int) -> str:
    what = "was cut off" if found < wanted else "is longer than it says"
    return f"{path} {what}: it has {found:,} bytes, not {wanted:,}; get it again"


def _read(path: Path, size: int = -1) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path} was cut off or is damaged; get it again") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable") from None
