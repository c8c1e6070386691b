"""Load images from memory: all pixels stay on the device, and whole batches are augmented.

This suits sets of small images of one size, for which decoding each time would take longest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from pipeline.data.loaders import augmentation
from pipeline.data.loaders.base import (
    Batch,
    Cursor,
    Loader,
    LoaderSpec,
    decoded,
    evaluation,
    order,
    rank_slice,
    seed_from,
    steps,
)
from pipeline.data.shards import Manifest, Pictures

DRAWS = 12  # random numbers per image
TRIES = 10  # areas and shapes tried for a crop, as in torchvision; if none fits, the middle
MORE = 2 * TRIES + 2 + 4  # further random numbers per image, for crop=resized and jitter


class MemoryLoader(Loader):
    """Holds a split as uint8 (N, C, H, W) on its device; in an epoch the host sends no data."""

    kind = "memory"

    @classmethod
    def cannot(cls, spec: LoaderSpec) -> str | None:
        if spec.manifest.size is None:
            return "needs images of one size"
        if spec.augment and spec.augment.policy:
            return f"has no policy={spec.augment.policy}"
        return None

    def _open(self, position: bytes | None) -> None:
        spec = self.spec
        self._cursor = Cursor.of(spec, position)
        self._resized = spec.augment is not None and spec.augment.crop == "resized"
        self._images, self._labels, self._numbers = held(spec, whole=self._resized)
        self._mean, self._std = (
            torch.tensor(values, device=spec.device)[:, None, None]
            for values in (spec.manifest.mean, spec.manifest.std)
        )

    def __len__(self) -> int:
        return steps(len(self._numbers), self.spec)

    def _batches(self) -> Iterator[Batch]:
        spec, cursor = self.spec, self._cursor
        positions = order(len(self._numbers), cursor, spec).to(spec.device)
        draws = self._draws(len(positions), DRAWS, purpose=1)
        more = self._draws(len(positions), MORE if self._needs_more() else 0, purpose=3)
        for step in range(cursor.step, len(self)):
            here = rank_slice(step, spec)
            chosen = positions[here]
            images = self._images[chosen]
            if spec.augment:
                images = self._changed(images, draws[here], more[here])
            images = (images.float() / 255 - self._mean) / self._std
            if spec.augment:
                images = self._erased(images, draws[here], step)
            last = step + 1 == len(self)
            self._cursor = replace(cursor, epoch=cursor.epoch + last, step=0 if last else step + 1)
            yield spec.placed(Batch(images, self._labels[chosen], self._numbers[chosen]))

    def _needs_more(self) -> bool:
        return self._resized or (self.spec.augment is not None and any(self.spec.augment.jitter))

    def _draws(self, count: int, columns: int, purpose: int) -> Tensor:
        """Return the random numbers of an epoch, (count, columns) in [0, 1): a row per image."""
        cursor = self._cursor
        random = torch.Generator().manual_seed(seed_from(cursor.seed, cursor.epoch, purpose))
        return torch.rand(count, columns, generator=random).to(self.spec.device)

    def _position(self) -> bytes:
        return self._cursor.to_bytes()

    def _changed(self, images: Tensor, draws: Tensor, more: Tensor) -> Tensor:
        """Crop, move and colour uint8 images by their rows of random numbers in [0, 1)."""
        augment = self.spec.augment
        assert augment
        if self._resized:
            images = augmentation.resized(images, more[:, :-4], augment, self.spec.image_size)
        if augment.crop == "pad":
            images = _shifted(images, draws[:, 0:2], augment.padding)
        if augment.rotate or augment.translate:
            images = _turned(images, draws[:, 2:5], augment.rotate, augment.translate)
        if augment.flip:
            images = torch.where((draws[:, 5] < 0.5)[:, None, None, None], images.flip(3), images)
        if any(augment.jitter):
            images = augmentation.jittered(images, more[:, -4:], augment.jitter)
        return images

    def _erased(self, images: Tensor, draws: Tensor, step: int) -> Tensor:
        """Fill a rectangle with noise (random erasing), or a square with the mean (cutout)."""
        augment = self.spec.augment
        assert augment
        side = images.shape[-1]
        if augment.erase:  # torchvision's RandomErasing: 2 to 33 % of the area, ratio 0.3 to 3.3
            area = side**2 * (0.02 + 0.31 * draws[:, 6])
            ratio = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * draws[:, 7])
            size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=side)
            seed = seed_from(self._cursor.seed, self._cursor.epoch, step, self.spec.rank, 2)
            random = torch.Generator(images.device).manual_seed(seed)
            noise = torch.empty_like(images).normal_(generator=random)
            inside = _rectangle(side, draws[:, 8:10], size)
            chosen = (draws[:, 10] < augment.erase)[:, None, None] & inside
            images = torch.where(chosen[:, None], noise, images)
        if augment.cutout:
            size = torch.full((len(images), 2), float(augment.cutout), device=images.device)
            centre = torch.stack([draws[:, 11], draws[:, 9]], 1)  # an index list would be copied
            inside = _rectangle(side, centre, size, augment.cutout_clip)
            images = images.masked_fill(inside[:, None], 0.0)
        return images


def held(spec: LoaderSpec, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return all images of a split, their labels and numbers, on the device.

    The images are uint8 (N, C, H, W).
    They stay on the device for later loaders: each validation and each growth makes a new loader.

    Args:
        spec: names the split and the device.
        whole: whether images keep their stored size instead of an evaluation's scale and crop.
    """
    geometry = () if whole else (spec.resize, spec.image_size)
    return _held(spec.folder, spec.split, spec.digest("pixels"), geometry, spec.device)


@lru_cache(maxsize=2)  # the training split and the validation split
def _held(
    folder: Path, split: str, digest: bytes, geometry: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    manifest = Manifest.load(folder)
    pictures = Pictures(folder, manifest.splits[split])
    indices = range(len(pictures))
    labels, numbers = zip(*map(pictures.target, indices), strict=True)
    images = torch.stack([decoded(pictures.read(index), manifest.channels) for index in indices])
    if geometry and {*geometry, *images.shape[2:]} != {geometry[-1]}:
        images = evaluation(*geometry)(images)
    return images.to(device), torch.tensor(labels).to(device), torch.tensor(numbers).to(device)


def _shifted(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad the images, and return a random crop of the original size from each."""
    count, _, height, width = images.shape
    padded = pad(images, [padding] * 4)
    start = (draws * (2 * padding + 1)).long()
    rows = start[:, 0, None] + torch.arange(height, device=images.device)
    columns = start[:, 1, None] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def _turned(images: Tensor, draws: Tensor, degrees: float, share: float) -> Tensor:
    """Rotate about the centre and shift, in one interpolation; uncovered pixels are black."""
    spread = 2 * draws - 1
    angle = torch.deg2rad(degrees * spread[:, 0])
    shift = 2 * share * spread[:, 1:3]
    matrix = torch.stack(
        [
            torch.stack([angle.cos(), -angle.sin(), shift[:, 0]], 1),
            torch.stack([angle.sin(), angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    return grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)


def _rectangle(side: int, anchor: Tensor, size: Tensor, clip: bool = False) -> Tensor:
    """Return masks (N, side, side) of rectangles with sizes (N, 2) and anchors (N, 2) in [0, 1).

    With `clip`, an anchor is that of the centre, and what lies beyond the border is cut off.
    """
    if clip:
        start = (anchor * side).floor() - (size / 2).floor()
    else:
        start = (anchor * (side - size + 1).clamp(min=1)).floor()
    axis = torch.arange(side, device=anchor.device)
    rows, columns = ((axis >= s[:, None]) & (axis < (s + z.round())[:, None])
                     for s, z in zip(start.T, size.T, strict=True))  # fmt: skip
    return rows[:, :, None] & columns[:, None, :]
