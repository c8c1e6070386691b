"""Settings of the images: their source, their preparation, and how they are loaded."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.config.base import Section, Share, Target, Whole

ARCHIVE = "with {0}-python.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html"
FOUR = "with {0}train-images-idx3-ubyte.gz and the three other idx files in it"
PACKAGED = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}
"""Folders of data sets that Debian packages install, by `data.name`."""
HOLDS = {  # what the folder data.root must hold, by `data.name`
    "cifar10": ARCHIVE.format("cifar-10"),
    "cifar100": ARCHIVE.format("cifar-100"),
    "mnist": FOUR.format(""),
    "kmnist": FOUR.format(""),
    "emnist": FOUR.format("emnist-SPLIT-"),
    "fashion_mnist": f"{FOUR.format('')}; or `apt install dataset-fashion-mnist`",
    "parquet": "with .parquet files in it, or a data set of Hugging Face that was saved to disk",
    "webdataset": "with .tar shards in it, of KEY.jpg and KEY.cls for each image",
    "imagefolder": "with train/CLASS/IMAGE and val/CLASS/IMAGE in it, or CLASS/IMAGE to be split "
    "by data.val_fraction",
    "imagenet": "with ILSVRC 2012 as extracted: train/WNID/IMAGE and val/ in it, or its tar files",
}


MAX_PIXELS = 100_000_000  # per image, because a small file can claim more than fits into memory
MAX_ASPECT = 50  # of an image: if larger, scaling up the short side makes the long side enormous


class Images(Section):
    """Settings that all sources of images have.

    `image_size` is the side of the square that the network sees, in pixels. Evaluation scales the
    short side of an image to `resize` (null: `image_size`) and crops the centre. With 3 `channels`,
    the network sees a grey image as three equal ones; with 1, it sees the luminance of a colour
    image.
    """

    root: str | None
    image_size: PositiveInt
    resize: PositiveInt | None
    val_fraction: Share | None
    split_seed: NonNegativeInt
    max_bad: Annotated[float, Field(ge=0, lt=1)]
    loader: Literal["auto", "dali", "memory", "torch"]
    channels: Annotated[Literal[1, 3], Whole] = 3

    @property
    def short_side(self) -> int:
        """Short side to which evaluation scales an image before it crops the centre, pixels."""
        return self.resize or self.image_size

    @model_validator(mode="after")
    def _middle_is_there(self) -> Self:
        if self.image_size > self.short_side:
            raise ValueError(
                f"a square of image_size={self.image_size} cannot be cut out of an image scaled to "
                f"a short side of {self.resize}; set data.resize to {self.image_size} or more"
            )
        return self


class Digits(Images):
    """The handwritten digits of scikit-learn."""

    name: Literal["digits"]
    val_fraction: Share


class Cifar(Images):
    """CIFAR as distributed for Python."""

    name: Literal["cifar10", "cifar100"]
    root: str
    val_fraction: None


class Mnist(Images):
    """MNIST and data sets with the same files."""

    name: Literal["mnist", "fashion_mnist", "kmnist"]
    root: str
    val_fraction: None


class Emnist(Images):
    """EMNIST: letters and digits, split in six ways by its authors."""

    name: Literal["emnist"]
    root: str
    val_fraction: None
    split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]

    @property
    def classes(self) -> int:
        """The number of classes of the split."""
        counts = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26}
        return counts.get(self.split, 10)


class ImageFolder(Images):
    """One folder per class; below `train` and `val` if `val_fraction` is null."""

    name: Literal["imagefolder"]
    root: str


class ImageNet(Images):
    """ILSVRC 2012, extracted or in its tar files."""

    name: Literal["imagenet"]
    root: str
    val_fraction: None


class Parquet(Images):
    """Hugging Face tables of encoded images: parquet files, or a data set saved to disk."""

    name: Literal["parquet"]
    root: str
    image_column: str | None
    label_column: str | None


class WebDataset(Images):
    """Tar shards of images and classes; `train` and `val` are patterns of their file names."""

    name: Literal["webdataset"]
    root: str
    train: str | None
    val: str | None


class Synthetic(Images):
    """Generated images, for load tests."""

    name: Literal["synthetic"]
    val_fraction: Share
    images: PositiveInt
    classes: PositiveInt
    height: PositiveInt
    width: PositiveInt


class Custom(Images, Target):
    """Images that a function or class of the user returns; `root`, if set, is passed to it."""

    name: Literal["custom"]


Data = Annotated[
    Digits
    | Cifar
    | Mnist
    | Emnist
    | ImageFolder
    | ImageNet
    | Parquet
    | WebDataset
    | Synthetic
    | Custom,
    Field(discriminator="name"),
]


class Prep(Section):
    """Settings of prepared data."""

    shard_images: PositiveInt
    shrink: PositiveInt | None
    quality: Annotated[int, Field(ge=1, le=100)]
