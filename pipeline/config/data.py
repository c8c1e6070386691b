"""The images: where they come from, how they are prepared."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from pipeline.config.base import Section, Share


class Data(Section):
    """The images and the split; the same for every stage."""

    name: Literal["digits"]
    root: str | None
    image_size: PositiveInt
    val_fraction: Share
    split_seed: NonNegativeInt
    loader: Literal["dali"]


class Prep(Section):
    """How prepared data is laid out."""

    shard_images: PositiveInt
