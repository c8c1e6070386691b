"""The DALI loader: one pipeline definition for CPU and GPU, for training and for evaluation.

On a GPU the images are decoded there ("mixed"); every operation after the decoder follows its
input, so the definition is the same. Training drops what does not fill a batch on every rank;
evaluation sees each image exactly once. `pad_last_batch` is on for both: without it ranks drift
apart over the epochs and samples are lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy
from torch import Tensor

from pipeline.config.train import Augment
from pipeline.data.shards import Manifest, damage
from pipeline.errors import UserError

SHUFFLE_BUFFER = 8192  # images; shards are shuffled when written, this shuffles anew each epoch


class Batch(NamedTuple):
    """Images (N, 3, H, W) normalised, labels (N,) and image numbers (N,), int64."""

    images: Tensor
    labels: Tensor
    numbers: Tensor


class DaliLoader:
    """Batches of one split, for one rank.

    Args:
        folder: Prepared data.
        split: "train" or "val".
        batch_size: Images per rank.
        image_size: Side of the square the network sees, pixels.
        augment: Random changes; None evaluates: fixed order, each image once.
        rank, world_size: Which part of the split this loader reads.
        device: Where the batches end up; decoding happens there too if it is a GPU.
        seed: Order and augmentation.
        state: Of an earlier `state()`, to continue in the middle of an epoch.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        batch_size: int,
        image_size: int,
        augment: Augment | None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device,
        seed: int = 0,
        threads: int = 2,
        state: Tensor | None = None,
    ) -> None:
        manifest = Manifest.load(folder)
        names = [shard.name for shard in manifest.splits[split].shards]
        gpu = device.type == "cuda"
        graph = _graph(
            paths=[str(folder / name) for name in names],
            indices=[str((folder / name).with_suffix(".idx")) for name in names],
            manifest=manifest,
            image_size=image_size,
            augment=augment,
            rank=rank,
            world_size=world_size,
            gpu=gpu,
            batch_size=batch_size,
            num_threads=threads,
            device_id=device.index or 0 if gpu else None,
            seed=seed + rank,
            enable_checkpointing=True,
            checkpoint=None if state is None else bytes(state.tolist()),
        )
        policy = LastBatchPolicy.DROP if augment else LastBatchPolicy.PARTIAL
        self._batches = DALIGenericIterator(
            graph, ["images", "targets"], reader_name="shards",
            last_batch_policy=policy, auto_reset=True,
        )  # fmt: skip
        self._device, self._folder, self._split = device, folder, split

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for (batch,) in self._decoded():
            targets = batch["targets"].to(self._device, torch.int64)
            yield Batch(batch["images"].to(self._device), targets[:, 0], targets[:, 1])

    def _decoded(self) -> Iterator[list[dict[str, Tensor]]]:
        """Yield DALI's batches.

        Raises:
            UserError: an image cannot be decoded, which prep made sure of: its shard was damaged.
        """
        try:
            yield from self._batches
        except RuntimeError as error:
            found = damage(self._folder, self._split)
            if found is None:
                raise
            raise UserError(
                f"{found}; `rm -r {self._folder.resolve()}` and launch again to make it anew"
            ) from error

    def state(self) -> Tensor:
        """Return the position after the last batch taken, as bytes in a uint8 tensor."""
        return torch.frombuffer(bytearray(self._batches.checkpoints()[0]), dtype=torch.uint8)


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(
    paths: list[str],
    indices: list[str],
    manifest: Manifest,
    image_size: int,
    augment: Augment | None,
    rank: int,
    world_size: int,
    gpu: bool,
) -> Any:
    encoded, target = fn.readers.webdataset(  # type: ignore[misc]
        paths=paths,
        index_paths=indices,
        ext=["png;jpg", "target"],
        missing_component_behavior="error",
        shard_id=rank,
        num_shards=world_size,
        random_shuffle=augment is not None,
        initial_fill=SHUFFLE_BUFFER,
        pad_last_batch=True,
        name="shards",
    )
    images = fn.decoders.image(
        encoded, device="mixed" if gpu else "cpu", output_type=types.RGB, adjust_orientation=False
    )
    images = fn.resize(images, size=[image_size, image_size], antialias=True)
    if augment:
        images = _augmented(images, augment, image_size)
    images = fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * m for m in manifest.mean],
        std=[255 * s for s in manifest.std],
        mirror=fn.random.coin_flip() if augment and augment.flip else 0,
    )
    return images, fn.reinterpret(target, dtype=types.INT32, shape=[2])


def _augmented(images: Any, augment: Augment, size: int) -> Any:
    """Rotate about the centre and shift, in one interpolation."""
    angle = augment.rotate * fn.random.uniform(range=(-1.0, 1.0))
    offset = augment.translate * size * fn.random.uniform(range=(-1.0, 1.0), shape=2)
    matrix = fn.transforms.rotation(angle=angle, center=[size / 2] * 2)
    matrix = fn.transforms.translation(matrix, offset=offset)
    return fn.warp_affine(images, matrix=matrix, fill_value=0, inverse_map=False)
