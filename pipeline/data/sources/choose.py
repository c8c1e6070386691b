"""The source that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.data.sources import arrays, folders, idx, imagenet_tars, parquet, webdataset

if TYPE_CHECKING:
    from pipeline.config.data import Images
    from pipeline.data.sources.base import Source


def source(data: Images) -> Source:
    """Return the source that `data` names."""
    kinds: dict[str, Callable[[Any], Source]] = {
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
        "imagenet": imagenet_tars.source,
    }
    return kinds[data.name](data)  # type: ignore[attr-defined]
