"""Collect the mistakes of a network with the highest confidence."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

SIDE = 96  # of a picture in the gallery, pixels


@dataclass(frozen=True)
class Mistake:
    """A mistake: number of the image, its class, the predicted class and its probability."""

    number: int
    label: int
    predicted: int
    confidence: float
    png: str  # base64

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class Gallery:
    """Keeps the `limit` mistakes with the highest confidence."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: list[Mistake] = []

    def show(self, pixels: Tensor, label: Tensor, number: Tensor, table: Tensor) -> None:
        """Add a batch: pixels (N, C, H, W) from 0 to 1, labels, numbers, answers (N, 6)."""
        wrong = (table[:, 0].long() != label).nonzero().flatten()
        surest = wrong[table[wrong, -1].argsort(descending=True, stable=True)][: self.limit]
        for i in surest.tolist():
            self.kept.append(
                Mistake(
                    int(number[i]), int(label[i]), int(table[i, 0]), float(table[i, -1]),
                    _png(pixels[i]),
                )
            )  # fmt: skip
        self.kept = best(self.kept, self.limit)


def best(mistakes: list[Mistake], limit: int) -> list[Mistake]:
    """Return the mistakes with the highest confidence, independent of their order."""
    return sorted(mistakes, key=lambda one: (-one.confidence, one.number))[:limit]


def _png(pixels: Tensor) -> str:
    image: Image.Image = functional.to_pil_image(pixels.float().cpu())
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
