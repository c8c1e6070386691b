"""Note the defaults that do not suit the images of a launch, and settings given more than once."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import Config
from pipeline.config.data import PACKAGED
from pipeline.config.rules import SMALL_IMAGE
from pipeline.planning.compose import parse

RECIPES = {
    "digits": (
        "digits",
        "mnist",
        "fashion_mnist",
        "kmnist",
        "emnist",
    ),
    "cifar": (
        "cifar10",
        "cifar100",
        "imagefolder",
        "parquet",
        "webdataset",
        "synthetic",
        "custom",
    ),
    "imagenet": (
        "imagenet",
        "imagefolder",
        "parquet",
        "webdataset",
        "synthetic",
        "custom",
    ),
}


def given_again(overrides: list[str]) -> Iterator[str]:
    """Yield a note for each setting given more than once: Hydra takes the last value."""
    last = {override.key_or_group: override.input_line for override in parse(overrides)}
    before = {o.key_or_group for o in parse(overrides) if o.input_line != last[o.key_or_group]}
    yield from (f"{key} is given more than once; the last counts: {last[key]}" for key in before)


def unchosen(config: Config, overrides: list[str]) -> list[str]:
    """Return notes on defaults that do not suit the images of this launch."""
    named = {override.key_or_group for override in parse(overrides)}
    data, size = config.data.name, config.data.image_size
    notes = []
    if "data.root" not in named and config.data.root == PACKAGED.get(data, ""):
        notes.append(f"data.root={config.data.root}, where Debian's package puts {data}")
    if "experiment" in named:
        return notes
    if "train" not in named and data not in RECIPES.get(config.train.name, [data]):
        fitting = [recipe for recipe, images in RECIPES.items() if data in images]
        suits = fitting[-1 if size > SMALL_IMAGE else 0] if fitting else None
        cure = f"; for data={data} at {size} pixels: train={suits}" if suits else ""
        notes.append(f"train={config.train.name} is a recipe for other images{cure}")
    if "model" not in named and config.model.family == "vgg" and size > SMALL_IMAGE:
        notes.append(
            f"model={config.model.name} is for small images, not for {size} pixels; "
            "for these: model=resnet18"
        )
    return notes
