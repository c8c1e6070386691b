"""The images of a training: a loader for each of their uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from pipeline.config import Config
from pipeline.data.loaders.base import Loader, Part
from pipeline.data.loaders.choose import choose, make
from pipeline.execution.world import World
from pipeline.training import device


class Images:
    """The prepared images, as one process of a training is shown them.

    Args:
        config: Of the training.
        folder: With the prepared data.
        world: Each of its processes has a share of every batch.
        waiting: See `Part.waiting`.
    """

    def __init__(
        self, config: Config, folder: Path, world: World, waiting: Callable[[float], None]
    ) -> None:
        self._config, self._folder, self._world = config, folder, world
        self._waiting = waiting
        # apart from those of its neighbours; what is added stays within 64 bits
        self.seed = config.seed * 100_003 % 2**62

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self._part("train").manifest.classes)

    def training(self, since: int = 0, state: Tensor | None = None) -> Loader:
        """Return a loader to train with: in another order for each `since`, or as saved."""
        return make(self._config.data.loader, self._part("train", since), state)

    def validation(self) -> Loader:
        """Return a loader of the validation images, unchanged and in order."""
        return make(self._config.data.loader, self._part("val"))

    def calibration(self, count: int, epoch: int, check_stop: Callable[[], None]) -> list[Tensor]:
        """Return the batches that `apart` yields."""
        return list(self.apart(count, epoch, check_stop))

    def apart(self, count: int, epoch: int, check_stop: Callable[[], None]) -> Iterator[Tensor]:
        """Yield batches from a loader of their own: the training order is untouched.

        Args:
            count: How many; no more than there are.
            epoch: After which they are needed; those of another are other images.
            check_stop: Called before each, may raise.
        """
        for _, batch in zip(range(count), self.training(epoch), strict=False):
            check_stop()
            yield batch.images

    def chosen(self, used: Loader) -> str:
        """Return which loader is used, and why."""
        kind, why = choose(self._config.data.loader, self._part("train"))
        return f"data.loader: {used.kind} ({why if kind.kind == used.kind else 'as it began'})"

    def _part(self, split: str, since: int = 0) -> Part:
        config, world = self._config, self._world
        return Part(
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
