"""Corrupt images as a camera or a website does, to test the robustness of a network.

The corruptions are like severity 2 to 3 of ImageNet-C (Hendrycks and Dietterich, 2019). Noise is
seeded by the number of the image, so each image is corrupted in the same way with any number of
processes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

NOISE = 0.1  # standard deviation, for pixels from 0 to 1
QUALITY = 20  # quality of JPEG
BLURRED = 1 / 75  # standard deviation of the blur, as a share of the side: 3 pixels of 224

Shift = Callable[[Tensor, Tensor], Tensor]


def blur(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Return images (N, C, H, W) out of focus."""
    sigma = max(0.5, BLURRED * pixels.shape[-1])
    size = 2 * round(2 * sigma) + 1
    blurred: Tensor = functional.gaussian_blur(pixels, [size, size], [sigma, sigma])
    return blurred


def noise(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Return images with Gaussian noise, seeded by the number of each image."""
    drawn = [
        torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(number))
        for number in numbers.tolist()
    ]
    return (pixels + NOISE * torch.stack(drawn).to(pixels.device)).clamp(0, 1)


def jpeg(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Return images after a strong compression."""
    coded = [_coded(functional.to_pil_image(image)) for image in pixels.float().cpu()]
    return torch.stack(coded).to(pixels)


def _coded(image: Image.Image) -> Tensor:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    with Image.open(stream) as spoilt:
        pixels: Tensor = functional.pil_to_tensor(spoilt) / 255
    return pixels


SHIFTS: dict[Literal["blur", "noise", "jpeg"], Shift] = {"blur": blur, "noise": noise, "jpeg": jpeg}


class Pixels:
    """Converts normalised images to pixels from 0 to 1, and back."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def of(self, images: Tensor) -> Tensor:
        """Return pixels."""
        return (images * self.std.to(images) + self.mean.to(images)).clamp(0, 1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return pixels as normalised images."""
        return (pixels - self.mean.to(pixels)) / self.std.to(pixels)
