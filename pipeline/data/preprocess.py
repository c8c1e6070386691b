"""Write and read preprocess.json, beside the fused network: how to prepare images for it.

A deployment needs to know nothing about the training: `load` returns a torchvision transform.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.data.shards import MODES, Manifest

if TYPE_CHECKING:
    from torchvision.transforms import v2

    from pipeline.config.data import Images

FILE = "preprocess.json"


class Preprocessing(TypedDict):
    """The preparation of an image in an evaluation.

    It is converted to `colour`, a mode of Pillow: `RGB`, or `L`, which is its luminance. Its short
    side is scaled to `resize` pixels, the middle square of `image_size` pixels is cut out, and
    values from 0 to 1 are normalised per channel.
    """

    colour: str
    resize: int
    interpolation: str
    antialias: bool
    image_size: int
    mean: list[float]
    std: list[float]
    classes: list[str]


def describe(data: Images, manifest: Manifest) -> Preprocessing:
    """Return the content of `preprocess.json` for prepared data."""
    return {
        "colour": MODES[manifest.channels],
        "resize": data.short_side,
        "interpolation": "bilinear",
        "antialias": True,
        "image_size": data.image_size,
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "classes": list(manifest.classes),
    }


def load(path: Path) -> v2.Transform:
    """Return the transform from a Pillow image to a float32 tensor (C, H, W).

    The image is upright, and RGB or grey.
    """
    import torch
    from torchvision.transforms import v2

    spec = json.loads(path.read_text(encoding="utf-8"))
    return v2.Compose(
        [
            v2.Grayscale() if spec["colour"] == "L" else v2.RGB(),
            v2.Resize(spec["resize"], v2.InterpolationMode(spec["interpolation"]), antialias=True),
            v2.CenterCrop(spec["image_size"]),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(spec["mean"], spec["std"]),
        ]
    )
