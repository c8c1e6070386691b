"""Load images with DALI: one pipeline definition for CPU and GPU, training and evaluation.

On a GPU, the decoder's device is "mixed", and every later operation runs where its input is, so the
definition is the same as on a CPU. The order of the images is that of `base.order`, not that of
DALI's readers. Those shuffle only within a buffer. With several processes, if the sizes do not
divide, they return some images twice in an epoch and others not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from torch import Tensor

from pipeline.config.train import Augment
from pipeline.data.loaders.base import Batch, Cursor, Loader, LoaderSpec, order, rank_slice, steps
from pipeline.data.shards import Pictures

NOTHING = -1  # image number of a placeholder in a batch that would otherwise be empty


class DaliLoader(Loader):
    """Decodes images on the device of the batches, even on a GPU."""

    kind = "dali"

    @classmethod
    def cannot(cls, spec: LoaderSpec) -> str | None:
        augment = spec.augment
        if augment and augment.policy:
            return f"has no policy={augment.policy}"
        if augment and (augment.erase or augment.cutout):
            return "does not erase (erase, cutout)"
        return None

    def _open(self, position: bytes | None) -> None:
        spec = self.spec
        start, _, checkpoint = (position or b"").partition(b"\n")
        self._seed = Cursor.of(spec, start or None).seed
        pictures = spec.pictures()
        self._steps = steps(len(pictures), spec)
        gpu = spec.device.type == "cuda"
        graph = _graph(
            source=_Source(pictures, spec, self._seed),
            spec=spec,
            gpu=gpu,
            batch_size=spec.batch_size,
            num_threads=spec.threads,
            device_id=spec.device.index or 0 if gpu else None,
            seed=self._seed + spec.rank,
            enable_checkpointing=True,
            checkpoint=checkpoint or None,
        )
        self._iterator = DALIGenericIterator(graph, ["images", "targets"], auto_reset=True)

    def __len__(self) -> int:
        return self._steps

    def _batches(self) -> Iterator[Batch]:
        device = self.spec.device
        for (batch,) in self._iterator:
            labels, numbers = batch["targets"].to(device, torch.int64).unbind(1)
            there = numbers != NOTHING if len(numbers) == 1 else slice(None)
            images = batch["images"].to(device)[there]
            yield self.spec.placed(Batch(images, labels[there], numbers[there]))

    def _position(self) -> bytes:
        checkpoint: bytes = self._iterator.checkpoints()[0]
        return Cursor(self._seed).to_bytes() + b"\n" + checkpoint


class _Source:
    """Returns the encoded images and targets of a batch when DALI calls it with the batch's number.

    The result depends on nothing but epoch and batch number. So DALI can resume exactly.
    """

    def __init__(self, pictures: Pictures, spec: LoaderSpec, seed: int) -> None:
        self._pictures, self._spec, self._seed = pictures, spec, seed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))  # the present epoch and its order

    def __call__(self, info: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        if info.iteration >= steps(len(self._pictures), self._spec):
            raise StopIteration
        if self._order[0] != info.epoch_idx:
            cursor = Cursor(self._seed, info.epoch_idx)
            self._order = info.epoch_idx, order(len(self._pictures), cursor, self._spec)
        indices = self._order[1][rank_slice(info.iteration, self._spec)].tolist()
        targets = [np.array(self._pictures.target(index), dtype=np.int32) for index in indices]
        if not indices:
            indices, targets = [0], [np.array([0, NOTHING], dtype=np.int32)]
        images = [np.frombuffer(self._pictures.read(index), dtype=np.uint8) for index in indices]
        return images, targets


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(source: Any, spec: LoaderSpec, gpu: bool) -> Any:
    augment = spec.augment
    encoded, target = fn.external_source(
        source=source, num_outputs=2, batch=True, batch_info=True,
        dtype=[types.UINT8, types.INT32], ndim=[1, 1],
    )  # fmt: skip
    images = _cropped(encoded, spec, "mixed" if gpu else "cpu")
    if augment and (augment.rotate or augment.translate):
        images = _turned(images, augment, spec.image_size)
    if augment and any(augment.jitter):
        images = _jittered(images, augment.jitter, spec.channels)
    images = fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * m for m in spec.manifest.mean],
        std=[255 * s for s in spec.manifest.std],
        mirror=fn.random.coin_flip() if augment and augment.flip else 0,
    )
    return images, target


def _cropped(encoded: Any, spec: LoaderSpec, device: str) -> Any:
    """Decode, and cut out the square that the network sees."""
    colours = types.RGB if spec.channels == 3 else types.GRAY
    how = {"device": device, "output_type": colours, "adjust_orientation": False}
    augment, size = spec.augment, spec.image_size
    if augment and augment.crop == "resized":  # the decoder decodes only the part that is kept
        images = fn.decoders.image_random_crop(
            encoded, random_area=augment.scale, random_aspect_ratio=augment.ratio,
            num_attempts=10, **how,
        )  # fmt: skip
        return fn.resize(images, size=[size, size], antialias=True)
    images = _middle(encoded, fn.decoders.image(encoded, **how), spec.resize, size)
    if augment and augment.crop == "pad":
        whole = size + 2 * augment.padding
        # a crop that is larger than the image, around the middle, adds the padding
        images = fn.crop(images, crop=[whole, whole], out_of_bounds_policy="pad", fill_values=0)
        corner = {f"crop_pos_{axis}": fn.random.uniform(range=(0.0, 1.0)) for axis in ("x", "y")}
        images = fn.crop(images, crop=[size, size], **corner)
    return images


def _middle(encoded: Any, images: Any, resize: int, size: int) -> Any:
    """Scale the short side and cut out the middle, with exactly torchvision's pixels.

    Torchvision rounds the long side down, and rounds a start at half a pixel to the even pixel.
    """
    shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.INT32)
    height, width = shape[0], shape[1]
    short = math.min(height, width)
    height, width = height * resize // short, width * resize // short
    images = fn.resize(
        images, size=fn.cast(fn.stack(height, width), dtype=types.FLOAT), antialias=True
    )

    def start(length: Any) -> Any:
        spare = length - size
        half = spare // 2
        odd = spare - 2 * half
        return half + odd * (half - 2 * (half // 2))

    return fn.slice(
        images, start=fn.stack(start(height), start(width)), shape=[size, size], axes=[0, 1]
    )


def _turned(images: Any, augment: Augment, size: int) -> Any:
    """Rotate about the centre and shift, in one interpolation."""
    angle = augment.rotate * fn.random.uniform(range=(-1.0, 1.0))
    offset = augment.translate * size * fn.random.uniform(range=(-1.0, 1.0), shape=2)
    matrix = fn.transforms.rotation(angle=angle, center=[size / 2] * 2)
    matrix = fn.transforms.translation(matrix, offset=offset)
    return fn.warp_affine(images, matrix=matrix, fill_value=0, inverse_map=False)


def _jittered(images: Any, jitter: list[float], channels: int) -> Any:
    """Scale brightness and contrast; of RGB also the saturation, and rotate the hue."""
    factors = {
        name: fn.random.uniform(range=(max(0.0, 1 - far), 1 + far))
        for name, far in zip(("brightness", "contrast", "saturation"), jitter, strict=False)
        if far
    }
    if jitter[3]:
        factors["hue"] = 360 * fn.random.uniform(range=(-jitter[3], jitter[3]))
    if channels == 1:
        grey = {name: factors[name] for name in ("brightness", "contrast") if name in factors}
        return fn.brightness_contrast(images, **grey)
    return fn.color_twist(images, **factors)
