"""Load images from the shards with torchvision's decoders and transforms, in a DataLoader.

It needs only torch and torchvision, and supports all of their transforms.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pipeline.config.train import Augment
from pipeline.data.loaders.ahead import copied
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
from pipeline.data.loaders.workers import POLL, affordable, batches

POLICIES = {
    "randaugment": v2.RandAugment,
    "autoaugment": v2.AutoAugment,
    "trivialaugment": v2.TrivialAugmentWide,
}
Key = tuple[int, int]  # index of an image in the shards, and a seed


class TorchLoader(Loader):
    """Decodes in worker processes, one per core."""

    kind = "torch"

    @classmethod
    def cannot(cls, spec: LoaderSpec) -> str | None:
        return None

    def _open(self, position: bytes | None) -> None:
        self._cursor = Cursor.of(self.spec, position)
        self._images = Images(self.spec)

    def __len__(self) -> int:
        return steps(len(self._images), self.spec)

    def _batches(self) -> Iterator[Batch]:
        spec, cursor = self.spec, self._cursor
        left = list(self._keys())[cursor.step :]
        wanted = spec.threads if spec.threads > 1 else 0
        workers = affordable(wanted, spec.batch_bytes, spec.neighbours) if wanted else 0
        loader = DataLoader(
            self._images,
            batch_sampler=left,
            num_workers=workers,
            generator=torch.Generator(),  # torch's global one is for mixing and dropout
            collate_fn=partial(_shared if workers else _collated, spec),
            timeout=POLL if workers else 0,
            pin_memory=spec.device.type == "cuda",
            multiprocessing_context="fork" if workers else None,  # starts at once; uses no GPU
        )
        for step, batch in enumerate(copied(batches(loader, spec.waiting), spec), cursor.step):
            last = step + 1 == len(self)
            self._cursor = replace(cursor, epoch=cursor.epoch + last, step=0 if last else step + 1)
            yield batch

    def _keys(self) -> Iterator[list[Key]]:
        """Yield the images of each batch of the epoch, with the seed of their changes."""
        spec, cursor = self.spec, self._cursor
        positions = order(len(self._images), cursor, spec).tolist()
        numbers = range(len(positions))
        for step in range(len(self)):
            here = numbers[rank_slice(step, spec)]
            keys = [(positions[n], seed_from(cursor.seed, cursor.epoch, n)) for n in here]
            yield keys or [(-1, 0)]

    def _position(self) -> bytes:
        return self._cursor.to_bytes()


class Images(Dataset[Any]):
    """The images of a split, read from the shards by their index."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._pictures = spec.pictures()
        self._change = training(spec) if spec.augment else evaluation(spec.resize, spec.image_size)
        self._finish = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(spec.manifest.mean), list(spec.manifest.std)),
                *(erasing(spec) if spec.augment else []),
            ]
        )
        self._channels = spec.channels

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | None:
        """Return image and (label, number); None for the placeholder of an empty batch."""
        index, seed = key
        if index < 0:
            return None
        image = decoded(self._pictures.read(index), self._channels)
        target = torch.tensor(self._pictures.target(index))
        with torch.random.fork_rng(devices=[]):  # transforms draw from the global generator
            torch.manual_seed(seed)
            return self._finish(self._change(image)), target


def _shared(spec: LoaderSpec, rows: list[tuple[Tensor, Tensor] | None]) -> list[Tensor]:
    """Put a batch into shared memory here, because errors in torch's own thread are lost."""
    return [tensor.contiguous().share_memory_() for tensor in _collated(spec, rows)]


def _collated(
    spec: LoaderSpec, rows: list[tuple[Tensor, Tensor] | None]
) -> tuple[Tensor, Tensor, Tensor]:
    kept = [row for row in rows if row]
    if not kept:
        none = torch.zeros(0, spec.channels, spec.image_size, spec.image_size)
        return none, torch.zeros(0).long(), torch.zeros(0).long()
    images, targets = (torch.stack(column) for column in zip(*kept, strict=True))
    return images, targets[:, 0], targets[:, 1]


def training(spec: LoaderSpec) -> v2.Transform:
    """Return the transform that changes a training image, uint8 (C, H, W), at random."""
    augment = spec.augment
    assert augment
    return v2.Compose(
        [*_crop(augment, spec), *_moves(augment), *_colours(augment, spec)] or [v2.Identity()]
    )


def _crop(augment: Augment, spec: LoaderSpec) -> list[v2.Transform]:
    size = spec.image_size
    if augment.crop == "resized":
        scale, ratio = tuple(augment.scale), tuple(augment.ratio)
        return [v2.RandomResizedCrop(size, scale=scale, ratio=ratio, antialias=True)]
    middle = evaluation(spec.resize, size)
    return [middle, v2.RandomCrop(size, augment.padding)] if augment.crop == "pad" else [middle]


def _moves(augment: Augment) -> list[v2.Transform]:
    found: list[v2.Transform] = []
    if augment.rotate or augment.translate:
        shift = (augment.translate, augment.translate) if augment.translate else None
        bilinear = v2.InterpolationMode.BILINEAR
        found.append(v2.RandomAffine(augment.rotate, translate=shift, interpolation=bilinear))
    if augment.flip:
        found.append(v2.RandomHorizontalFlip())
    return found


def _colours(augment: Augment, spec: LoaderSpec) -> list[v2.Transform]:
    found: list[v2.Transform] = []
    if any(augment.jitter):
        found.append(v2.ColorJitter(*augment.jitter))
    if augment.policy:
        own = POLICIES.get(augment.policy)
        found.append(own() if own else TimmPolicy(augment.policy, spec))
    return found


def erasing(spec: LoaderSpec) -> list[v2.Transform]:
    """Return the transforms that erase parts of the normalised image."""
    augment = spec.augment
    assert augment
    found: list[v2.Transform] = []
    if augment.erase:
        found.append(v2.RandomErasing(p=augment.erase, value="random"))
    if augment.cutout and augment.cutout_clip:
        found.append(ClippedCutout(augment.cutout))
    elif augment.cutout:
        share = (augment.cutout / spec.image_size) ** 2
        found.append(v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0), value=0.0))
    return found


class ClippedCutout(nn.Module):
    """Fills a square with the mean; its centre is anywhere, so the border may cut the square off.

    Args:
        side: side of the square, pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self._side = side

    def forward(self, image: Tensor) -> Tensor:
        """Return a normalised image (C, H, W) with the square filled."""
        rows, columns = (
            slice(max(0, start), start + self._side)
            for start in (
                int(torch.randint(length, ())) - self._side // 2 for length in image.shape[-2:]
            )
        )
        image = image.clone()
        image[:, rows, columns] = 0.0
        return image


class TimmPolicy(nn.Module):
    """Changes an image by a policy string of timm, which works on Pillow images.

    Timm draws from Python's and numpy's generators. They are seeded for each image, and restored
    afterwards.

    Args:
        text: the policy, e.g. `rand-m9-mstd0.5-inc1`.
        spec: provides the image size, and the mean colour, which fills uncovered pixels.
    """

    def __init__(self, text: str, spec: LoaderSpec) -> None:
        super().__init__()
        from timm.data import auto_augment  # takes seconds, so only if it is needed

        kind = text.partition("-")[0]
        make = {
            "rand": auto_augment.rand_augment_transform,
            "augmix": auto_augment.augment_and_mix_transform,
        }.get(kind, auto_augment.auto_augment_transform)
        far: dict[str, Any] = {"translate_const": int(0.45 * spec.image_size)}
        if kind == "augmix":
            far = {"translate_pct": 0.3}
        colour = tuple(min(255, round(255 * mean)) for mean in spec.manifest.mean)
        self._change = make(text, {**far, "img_mean": colour})
        for op in _ops(self._change):
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize

    def forward(self, image: Tensor) -> Tensor:
        """Return a changed image, uint8 (C, H, W)."""
        drawn = random.getstate(), np.random.get_state()
        seed = int(torch.randint(2**31, ()))
        try:
            random.seed(seed)
            np.random.seed(seed)
            changed = self._change(v2.functional.to_pil_image(image))
        finally:
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])
        return v2.functional.pil_to_tensor(changed)


def _ops(change: Any) -> Iterator[Any]:
    """Yield the operations of one of timm's policies."""
    for held in (getattr(change, "ops", ()), *getattr(change, "policy", ())):
        yield from held


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep `bits` bits of each pixel, at least 1: timm may draw 0, which Pillow refuses."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))
