"""Make the loaders of a training: for training, validation and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from pipeline.config import Config
from pipeline.contract.world import World
from pipeline.data.loaders.base import Loader, LoaderSpec
from pipeline.data.loaders.choose import choose, make
from pipeline.training import device


class Images:
    """Makes loaders of the prepared images for one process of a training.

    Args:
        config: the configuration of the run.
        folder: the folder of the prepared data.
        world: the processes, each of which loads its share of every batch.
        waiting: see `LoaderSpec.waiting`.
    """

    def __init__(
        self, config: Config, folder: Path, world: World, waiting: Callable[[float], None]
    ) -> None:
        self._config, self._folder, self._world = config, folder, world
        self._waiting = waiting
        # far from the seeds of other runs; with an epoch or rank added it fits into 64 bits
        self.seed = config.seed * 100_003 % 2**62

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._spec("train").manifest.classes)

    def training(self, since: int = 0, state: Tensor | None = None) -> Loader:
        """Return a training loader; its order depends on `since`, or continues a saved `state`."""
        return make(self._config.data.loader, self._spec("train", since), state)

    def validation(self) -> Loader:
        """Return a loader of the validation images, without augmentation and in order."""
        return make(self._config.data.loader, self._spec("val"))

    def calibration(self, count: int, epoch: int, check_stop: Callable[[], None]) -> list[Tensor]:
        """Return the batches that `apart` yields, as a list."""
        return list(self.apart(count, epoch, check_stop))

    def apart(self, count: int, epoch: int, check_stop: Callable[[], None]) -> Iterator[Tensor]:
        """Yield batches (N, C, H, W) from a separate loader; the training order is not affected.

        Args:
            count: number of batches, at most those of an epoch.
            epoch: number of finished epochs; each epoch gets other images.
            check_stop: called before each batch; may raise.
        """
        for _, batch in zip(range(count), self.training(epoch), strict=False):
            check_stop()
            yield batch.images

    def chosen(self, used: Loader) -> str:
        """Return a text that says which loader is used, and why."""
        kind, why = choose(self._config.data.loader, self._spec("train"))
        return f"data.loader: {used.kind} ({why if kind.kind == used.kind else 'as it began'})"

    def _spec(self, split: str, since: int = 0) -> LoaderSpec:
        config, world = self._config, self._world
        return LoaderSpec(
            folder=self._folder,
            split=split,
            batch_size=config.train.batch_size // world.world_size,
            image_size=config.data.image_size,
            resize=config.data.short_side,
            augment=config.train.augment if split == "train" else None,
            rank=world.rank,
            world_size=world.world_size,
            device=world.device,
            layout=device.layout(world.device, config.train),
            seed=self.seed + since if split == "train" else 0,
            waiting=self._waiting,
        )
