"""Choose the source by `data.name`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.sources import (
    arrays,
    custom,
    folders,
    idx,
    imagenet_tars,
    parquet,
    webdataset,
)

if TYPE_CHECKING:
    from pipeline.config.data import Images
    from pipeline.data.sources.base import Source


def source(data: Images, scratch: Path | None = None) -> Source:
    """Return the source of the settings; `scratch` is a folder for its temporary files."""
    mnist = partial(idx.Mnist, scratch=scratch)
    kinds: dict[str, Callable[[Any], Source]] = {
        "digits": arrays.Digits,
        "cifar10": arrays.Cifar,
        "cifar100": arrays.Cifar,
        "mnist": mnist,
        "fashion_mnist": mnist,
        "kmnist": mnist,
        "emnist": partial(idx.Emnist, scratch=scratch),
        "parquet": parquet.Parquet,
        "webdataset": webdataset.WebDataset,
        "synthetic": arrays.Synthetic,
        "imagefolder": folders.ImageFolder,
        "imagenet": imagenet_tars.source,
        "custom": partial(custom.Custom, scratch=scratch),
    }
    return kinds[data.name](data)  # type: ignore[attr-defined]
