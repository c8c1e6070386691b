"""Crop and colour whole batches at random on their device, for the memory loader.

Each image has its own random numbers. Crops are matrix products, so the host need not know the
numbers that were drawn.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from pipeline.config.train import Augment

HALF = 128.0  # the value that a change of contrast keeps, as in DALI
YIQ = ((0.299, 0.587, 0.114), (0.595879, -0.274133, -0.321746), (0.211205, -0.523083, 0.311878))


def resized(images: Tensor, draws: Tensor, augment: Augment, size: int) -> Tensor:
    """Crop each image at random, in area and shape; return the crop as a square of `size` pixels.

    As in torchvision's RandomResizedCrop, the first of ten areas and shapes that fits is used; if
    none does, the middle in the nearest shape. It is scaled with antialiasing.

    Args:
        images: uint8 (N, C, H, W).
        draws: (N, 2 * tries + 2) in [0, 1), for the areas, the shapes, and the corner.
        augment: provides `scale` and `ratio`.
        size: side of the result, pixels.
    """
    whole = images.shape[2:]
    tries = (draws.shape[1] - 2) // 2
    height, width = _sides(draws[:, : 2 * tries], augment, *whole)
    fits = (height >= 1) & (height <= whole[0]) & (width >= 1) & (width <= whole[1])
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # index of the first that fits
    found = fits.any(1)
    middle = _largest(*whole, *augment.ratio)
    weights = []
    for axis, sides in enumerate((height, width)):
        length = sides.gather(1, first)[:, 0].masked_fill(~found, middle[axis])
        spare = whole[axis] - length
        corner = (draws[:, axis - 2] * (spare + 1)).floor()
        start = torch.where(found, corner, (spare / 2).floor())
        weights.append(_weights(start, length, whole[axis], size)[:, None])
    scaled = weights[0] @ images.float() @ weights[1].mT
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _sides(draws: Tensor, augment: Augment, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return heights and widths (N, tries) of crops, in pixels; they may exceed the image."""
    areas, shapes = draws.chunk(2, 1)
    (least, most), (narrow, wide) = augment.scale, map(math.log, augment.ratio)
    area = height * width * (least + (most - least) * areas)
    ratio = torch.exp(narrow + (wide - narrow) * shapes)
    return (area / ratio).sqrt().round(), (area * ratio).sqrt().round()


def _largest(height: int, width: int, narrow: float, wide: float) -> tuple[float, float]:
    """Return height and width of the largest crop whose width / height is within a range."""
    return min(height, round(width / narrow)), min(width, round(height * wide))


def _weights(start: Tensor, length: Tensor, whole: int, size: int) -> Tensor:
    """Return (N, size, whole): the weights of the image's pixels in each pixel of the result.

    Bilinear with antialiasing, as in torch's interpolate: a triangle as wide as a pixel of the
    coarser of both grids, cut off at the border of the crop.

    Args:
        start: (N,), first pixel of the crop.
        length: (N,), pixels of the crop.
        whole: pixels of the image along this side.
        size: pixels of the result.
    """
    scale = (length / size)[:, None, None]
    here = torch.arange(whole, device=start.device)
    offset = here - start[:, None, None]  # number of the pixel within the crop
    centre = (torch.arange(size, device=start.device) + 0.5)[None, :, None] * scale
    weights = (1 - (offset + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((offset >= 0) & (offset < length[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def jittered(images: Tensor, draws: Tensor, jitter: list[float]) -> Tensor:
    """Scale brightness, contrast and saturation of uint8 images, and rotate their hue.

    This equals DALI's color_twist: saturation and hue are a matrix in YIQ, and contrast scales the
    distance to `HALF`. Grey images have no saturation and no hue.

    Args:
        images: (N, 3, H, W) or (N, 1, H, W).
        draws: (N, 4) in [0, 1).
        jitter: largest change of each, in the order above.
    """
    ranges = [(max(0.0, 1 - far), 1 + far) for far in jitter[:3]]
    ranges.append((-2 * math.pi * jitter[3], 2 * math.pi * jitter[3]))
    drawn = [
        least + (most - least) * draw
        for (least, most), draw in zip(ranges, draws.unbind(1), strict=True)
    ]
    return twisted(images, *drawn)


def twisted(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, angle: Tensor
) -> Tensor:
    """Return uint8 images with changed colours; factors and angle (radians) have the shape (N,)."""
    factor = (brightness * contrast)[:, None, None]
    offset = (HALF * (1 - contrast) * brightness)[:, None, None]
    matrix = factor if images.shape[1] == 1 else factor * _turn(saturation, angle)
    changed = matrix @ images.float().flatten(2) + offset
    return changed.round().clamp(0, 255).to(torch.uint8).view_as(images)


def _turn(saturation: Tensor, angle: Tensor) -> Tensor:
    """Return matrices (N, 3, 3) that change saturation and hue of RGB."""
    yiq, rgb = _yiq(angle.device)
    none, one = torch.zeros_like(angle), torch.ones_like(angle)
    cosine, sine = saturation * angle.cos(), saturation * angle.sin()
    turn = torch.stack(
        [one, none, none, none, cosine, sine, none, -sine, cosine], 1
    ).view(-1, 3, 3)  # fmt: skip
    return rgb @ turn @ yiq


@cache  # so that not every batch copies them to the device
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices from RGB to YIQ and back."""
    matrix = torch.tensor(YIQ)
    return matrix.to(device), torch.linalg.inv(matrix).to(device)
