"""Where images come from: a name, what it promises, and an iterator over its images.

Light to import: a launch asks for the promised number of images before it starts anything.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One encoded image and its class."""

    name: str
    data: bytes
    extension: str
    label: int


@dataclass(frozen=True)
class Source:
    """A set of labelled images: how many, which classes, and how to read them."""

    images: int
    classes: tuple[str, ...]
    samples: Callable[[], Iterator[Sample]]


def digits() -> Iterator[Sample]:
    """Yield the handwritten digits of scikit-learn as 8x8 grey PNGs (UCI ML repository)."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    for index, (image, label) in enumerate(zip(pixels, bunch.target, strict=True)):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        yield Sample(f"digits-{index:04d}", stream.getvalue(), "png", int(label))


SOURCES = {"digits": Source(1797, tuple("0123456789"), digits)}
