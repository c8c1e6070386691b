"""Define the interface of loaders: batches of a split for one process, from a resumable position.

`dali`, `memory` and `torch` yield the same images in an evaluation, up to rounding; in training
they differ in speed and in the supported augmentations. `choose` selects a loader.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.config import without_added
from pipeline.config.train import Augment
from pipeline.data.shards import MODES, Manifest, Pictures, damage
from pipeline.display.errors import UserError
from pipeline.records.environment import cores

if TYPE_CHECKING:
    from torchvision.transforms import v2

DIGEST = 16  # bytes of a digest
CPU = torch.device("cpu")


class Batch(NamedTuple):
    """Images (N, C, H, W) normalised; labels (N,) int64; image numbers (N,) int64.

    If images were mixed, labels are probabilities (N, classes).
    """

    images: Tensor
    labels: Tensor
    numbers: Tensor


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """What a loader is to load: which images, in which form, for which process.

    Args:
        folder: the folder of the prepared data.
        split: `train` or `val`.
        batch_size: images per process.
        image_size: side of the square the network sees, pixels.
        resize: the image's short side is scaled to so many pixels; then its middle is cut out.
        augment: random changes; None for an evaluation: fixed order, each image once.
        rank, world_size: they decide which images of the split this process reads.
        device: device of the batches.
        layout: memory format of the images.
        seed: seed of order and augmentation.
        neighbours: number of processes that share this machine's cores.
        waiting: called regularly while no batch arrives, with the seconds since the last batch; may
            raise to end the wait.
    """

    folder: Path
    split: str
    batch_size: int
    image_size: int
    resize: int
    augment: Augment | None
    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    layout: torch.memory_format = torch.contiguous_format
    seed: int = 0
    neighbours: int = field(default_factory=lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    waiting: Callable[[float], None] = lambda seconds: None

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of the prepared folder."""
        return Manifest.load(self.folder)

    @property
    def channels(self) -> int:
        """The number of channels of an image: 3 (RGB) or 1 (grey)."""
        return self.manifest.channels

    def pictures(self) -> Pictures:
        """Return the encoded images of the split."""
        return Pictures(self.folder, self.manifest.splits[self.split])

    @property
    def threads(self) -> int:
        """The number of cores on which this process may decode."""
        return max(1, cores() // self.neighbours)

    @property
    def batch_bytes(self) -> int:
        """The size of a batch in bytes."""
        return self.batch_size * (self.channels * self.image_size**2 * 4 + 16)

    def placed(self, batch: Batch) -> Batch:
        """Return a batch on the device, in the layout; copies from pinned memory are async."""
        images, labels, numbers = (t.to(self.device, non_blocking=True) for t in batch)
        return Batch(images.contiguous(memory_format=self.layout), labels, numbers)

    def digest(self, kind: str) -> bytes:
        """Return a hash of everything that a saved position depends on."""
        facts = {
            "kind": kind,
            "shards": [shard.sha256 for shard in self.manifest.splits[self.split].shards],
            "augment": self.augment and without_added(self.augment.model_dump(), "train.augment."),
            **{
                name: getattr(self, name)
                for name in ("split", "batch_size", "image_size", "resize", "rank", "world_size")
            },
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()[:DIGEST]


class Loader(ABC):
    """Yields the batches of one process; an iteration covers one epoch, or the rest of one."""

    kind: str

    def __init__(self, spec: LoaderSpec, state: Tensor | None = None) -> None:
        self.spec = spec
        self._open(None if state is None else self._checked(state))

    @classmethod
    @abstractmethod
    def cannot(cls, spec: LoaderSpec) -> str | None:
        """Return why this loader cannot load what a spec asks for; None if it can."""

    @abstractmethod
    def _open(self, position: bytes | None) -> None:
        """Begin at a saved position, or at the start if it is None."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every process."""

    @abstractmethod
    def _batches(self) -> Iterator[Batch]:
        """Yield the remaining batches of an epoch."""

    @abstractmethod
    def _position(self) -> bytes:
        """Return the position after the last batch that was taken."""

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._batches()
        except (RuntimeError, OSError) as error:
            found = damage(self.spec.folder, self.spec.split)
            if found is None:
                raise
            raise UserError(
                f"{found}; `rm -r {self.spec.folder.resolve()}` and launch again to rebuild it"
            ) from error

    def state(self) -> Tensor:
        """Return the position after the last batch that was taken, as bytes in a uint8 tensor."""
        content = self.spec.digest(self.kind) + self._position()
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def _checked(self, state: Tensor) -> bytes:
        """Return the position that a state holds.

        Raises:
            UserError: the position belongs to other data, another loader, or other settings.
        """
        content = bytes(state.tolist())
        if content[:DIGEST] != self.spec.digest(self.kind):
            raise UserError(
                f"the position to go on from is not one of these {self.spec.split} images in "
                f"batches of {self.spec.batch_size} through data.loader={self.kind}; go on with "
                "the data and settings that it was saved with"
            )
        return content[DIGEST:]


@dataclass(frozen=True)
class Cursor:
    """The position of loaders that count batches themselves."""

    seed: int
    epoch: int = 0
    step: int = 0

    def to_bytes(self) -> bytes:
        """Return the position as bytes, to be saved."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def of(cls, spec: LoaderSpec, position: bytes | None) -> Cursor:
        """Return a saved position; the start of the first epoch if there is none."""
        return cls(spec.seed) if position is None else cls(**json.loads(position))


def order(count: int, cursor: Cursor, spec: LoaderSpec) -> Tensor:
    """Return the image indices in the order of an epoch; identical on all ranks.

    In training, each epoch has a new permutation of all images, without a last incomplete batch.
    With `repeats`, each of the first images occurs so many times in a row, and hence on different
    processes (Hoffer et al., 2020); the epoch is as long as without repeats.
    """
    if spec.augment is None:
        return torch.arange(count)
    random = torch.Generator().manual_seed(seed_from(cursor.seed, cursor.epoch))
    shuffled = torch.randperm(count, generator=random)
    repeated = shuffled.repeat_interleave(spec.augment.repeats)
    return repeated[: steps(count, spec) * spec.batch_size * spec.world_size]


def steps(count: int, spec: LoaderSpec) -> int:
    """Return the batches per epoch: only full ones in training, all images in an evaluation."""
    whole = spec.batch_size * spec.world_size
    return count // whole if spec.augment else -(-count // whole)


def rank_slice(step: int, spec: LoaderSpec) -> slice:
    """Return the slice of the epoch's order that a rank reads in a step.

    In an evaluation, images alternate between processes. So all have the same number of batches,
    of which the last may be empty.
    """
    whole = spec.batch_size * spec.world_size
    if spec.augment is None:
        return slice(step * whole + spec.rank, (step + 1) * whole, spec.world_size)
    first = step * whole + spec.rank * spec.batch_size
    return slice(first, first + spec.batch_size)


def evaluation(resize: int, image_size: int) -> v2.Transform:
    """Return the transform of an evaluation: scale the short side, cut out the middle."""
    from torchvision.transforms import v2  # takes half a second, so only if images are scaled

    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(image_size)])


def decoded(data: bytes, channels: int) -> Tensor:
    """Decode an image to uint8 (C, H, W), RGB or its luminance."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.array(image.convert(MODES[channels]))
    return torch.from_numpy(np.atleast_3d(pixels)).movedim(2, 0)


def seed_from(*numbers: int) -> int:
    """Return a seed that depends on all numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:7], "big")
