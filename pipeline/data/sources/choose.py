"""The source that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.sources import arrays, folders, idx, imagenet, parquet, webdataset

if TYPE_CHECKING:
    from pipeline.config.data import Images
    from pipeline.data.sources.base import Source


def source(data: Images) -> Source:
    """Return the source that `data` names."""
    kinds = {
        "digits": arrays.Digits,
        "cifar10": arrays.Cifar,
        "cifar100": arrays.Cifar,
        "mnist": idx.Mnist,
        "fashion_mnist": idx.Mnist,
        "kmnist": idx.Mnist,
        "emnist": idx.Emnist,
        "parquet": parquet.Parquet,
        "webdataset": webdataset.WebDataset,
        "synthetic": arrays.Synthetic,
        "imagefolder": folders.ImageFolder,
        "imagenet": imagenet.ImageNet,
    }
    made: Source = kinds[data.name](data)  # type: ignore[attr-defined]
    return made
