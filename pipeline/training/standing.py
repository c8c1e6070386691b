"""Track the validations of a training: its best epoch, and the epochs without improvement."""

from __future__ import annotations

import math
from typing import TypedDict

from pipeline.config.train import Train


class StandingState(TypedDict):
    """The state of a `Standing` in a checkpoint.

    `lowest` is the lowest validation loss; `waited` counts the epochs since it, or since the
    learning rate fell.
    """

    epoch: int
    best: dict[str, float]
    falls: int
    lowest: float | None
    waited: int


class Standing:
    """Receives the metrics of one epoch after the other, which are equal in every process.

    The best epoch is the one with the highest top-1; of equal ones, the first. With
    `schedule=plateau`, the validation loss decides when the learning rate falls, because with few
    images the loss is more informative than top-1.

    Args:
        recipe: provides `patience`, `schedule`, `decay_epochs` and `decay_rate`.
        saved: the saved result of `state`; None for a training that begins.
    """

    def __init__(self, recipe: Train, saved: StandingState | None) -> None:
        self._recipe = recipe
        self.epoch = saved["epoch"] if saved else 0
        self.best = saved["best"] if saved else {}  # the best epoch's metrics, and its number
        self.falls = saved["falls"] if saved else 0  # number of falls of the learning rate
        self._lowest = saved["lowest"] if saved else None
        self._waited = saved["waited"] if saved else 0
        self.log_lines: list[str] = []  # lines on the consequences of the last epoch

    def record(self, epoch: int, metrics: dict[str, float]) -> None:
        """Record the metrics of an epoch."""
        self.epoch = epoch
        if not self.best or metrics["top1"] > self.best["top1"]:
            self.best = {"epoch": epoch, **metrics}
        loss = metrics["val_loss"]
        if math.isfinite(loss) and (self._lowest is None or loss < self._lowest):
            self._lowest, self._waited = loss, 0
        else:
            self._waited += 1
        self.log_lines = [*self._fall(), *self._end()]

    def _fall(self) -> list[str]:
        if self._recipe.schedule != "plateau" or self._waited != self._recipe.decay_epochs:
            return []
        self.falls, self._waited = self.falls + 1, 0
        return [
            f"the learning rate falls to {self._recipe.decay_rate:g} of what it was: no lower "
            f"validation loss for {self._recipe.decay_epochs} epochs (train.schedule=plateau)"
        ]

    def _end(self) -> list[str]:
        if not self.over:
            return []
        return [
            f"the training ends: no better top-1 since epoch {self.best_epoch} "
            f"(train.patience={self._recipe.patience})"
        ]

    @property
    def best_epoch(self) -> int:
        """The epoch of the highest top-1 so far; 0 before the first."""
        return int(self.best.get("epoch", 0))

    @property
    def over(self) -> bool:
        """Whether the training ends because nothing got better for `train.patience` epochs."""
        patience = self._recipe.patience
        return patience is not None and self.epoch - self.best_epoch >= patience

    def state(self) -> StandingState:
        """Return the state that a checkpoint keeps."""
        return {
            "epoch": self.epoch,
            "best": self.best,
            "falls": self.falls,
            "lowest": self._lowest,
            "waited": self._waited,
        }
