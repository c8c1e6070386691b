"""Hold the state of a training: its progress, and every part that must survive a restart.

`State.dump` returns the whole state for a checkpoint, and `State` can be built from its result.
A resumed training needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

from torch import Tensor

from pipeline.config import Config
from pipeline.contract.world import World
from pipeline.data.loaders.base import Batch
from pipeline.records import rundir
from pipeline.training import generators
from pipeline.training.cost import Cost, CostState
from pipeline.training.generators import Generators
from pipeline.training.growth import Growth, GrowthState
from pipeline.training.history import History, HistoryState, Rows
from pipeline.training.images import Images
from pipeline.training.learner import Learner, LearnerState
from pipeline.training.mixing import Mixing
from pipeline.training.pace import Pace
from pipeline.training.standing import Standing, StandingState


class RankState(TypedDict):
    """The part of a checkpoint that belongs to one process."""

    loader: Tensor
    generators: Generators


class Saved(LearnerState):
    """The content of a checkpoint; older versions lack the fields that are not required."""

    step: int
    epoch: int
    recalibrated: NotRequired[int]
    metrics: dict[str, float]
    growth: GrowthState
    cost: NotRequired[CostState]
    history: HistoryState
    standing: NotRequired[StandingState]
    ranks: list[RankState]


class State:
    """The network, its optimizer, the position in the data, and the records of one training.

    Args:
        config: the configuration of the run.
        world: the processes; `dump` gathers from all of them.
        images: source of the loaders.
        folder: stage directory, where `history.jsonl` and `growth.jsonl` are written.
        saved: the saved result of `dump`; None for a training that begins.
    """

    def __init__(
        self, config: Config, world: World, images: Images, folder: Path, saved: Saved | None
    ) -> None:
        self._world = world
        own = _own(saved, world) if saved else None
        self.step = saved["step"] if saved else 0
        self.epoch = saved["epoch"] if saved else 0  # epochs finished, with validation and growth
        self.recalibrated = saved.get("recalibrated", 0) if saved else 0  # its last epoch, or 0
        self.metrics = saved.get("metrics", {}) if saved else {}
        self.resumed_at = self.step
        self.loader = images.training(
            since=0 if own else self.step, state=own["loader"] if own else None
        )
        self.steps_per_epoch = len(self.loader)
        recipe, classes = config.train, images.classes
        self.cost = Cost(config, classes, saved.get("cost", {}) if saved else None)
        self.pace = Pace(recipe, self.steps_per_epoch, self.cost)
        self.standing = Standing(recipe, saved.get("standing") if saved else None)
        self.pace.falls = self.standing.falls
        self._mixing = Mixing(recipe, classes, config.data.image_size)
        self.learner = Learner(config, world, classes, self.pace, saved)
        generators.seed(images.seed + world.rank)  # weights are equal; dropout differs by rank
        rows = saved["growth"]["rows"] if saved else 0
        self.growth = Growth(
            self.learner.model,
            self.learner.optimizer,
            self.learner.ema,
            config.method,
            config.seed,
            Rows(folder / rundir.GROWTH, rows, world.main),
            self.learner.left,
            recipe.warmup_epochs,
        )
        self.history = History(
            folder / rundir.HISTORY, world, recipe, saved.get("history", {}) if saved else {}
        )
        if saved:
            self.learner.load_state(saved)
            self.growth.load_state(saved["growth"])
        if own:
            generators.restore(own["generators"])

    @property
    def plain_epochs(self) -> float:
        """Epochs done so far; under a budget, the cost so far in epochs of the plain network."""
        return self.pace.plain_epochs(self.step)

    @property
    def steps_to_go(self) -> int:
        """Number of remaining steps of the present epoch."""
        whole = (self.epoch + 1) * self.steps_per_epoch - self.step
        return min(whole, self.pace.steps_left(self.step))

    @property
    def boundary(self) -> bool:
        """Whether no epoch is under way."""
        return self.step % self.steps_per_epoch == 0

    @property
    def unfinished(self) -> bool:
        """Whether another epoch is to be trained, or the present one is to be completed."""
        begun = self.step > self.epoch * self.steps_per_epoch
        return begun or (self.pace.steps_left(self.step) > 0 and not self.standing.over)

    def epochs(self) -> Iterator[int]:
        """Yield the number of the present epoch, from 1, until the training is finished."""
        while self.unfinished:
            yield self.epoch + 1

    def batches(self) -> Iterator[Batch]:
        """Yield the remaining batches of the present epoch, ready to train on.

        If the budget is spent before the epoch is complete, the batches end early.
        """
        if not self.steps_to_go:
            return
        self.learner.train()
        self.history.start_clock()
        for batch in self.loader:
            self.history.batch_came()
            yield self.mixed(batch)
            if not self.steps_to_go and not self.boundary:
                return

    def mixed(self, batch: Batch) -> Batch:
        """Return the batch as `train.mixup` and `train.cutmix` mix it in the present epoch."""
        return self._mixing(batch, int(self.plain_epochs) if self.pace.budgeted else self.epoch)

    def train_on(self, batch: Batch) -> Tensor:
        """Update the network with one batch; return the loss, on the device; keep `step`."""
        self.cost.count()  # first, because the next learning rate may depend on the cost so far
        return self.learner.update(batch, partial(self.growth.accumulate, epochs=self.plain_epochs))

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Count the epoch that has ended, and record its validation."""
        self.metrics, self.epoch = metrics, self.epoch + 1
        self.standing.record(self.epoch, metrics)
        if self.pace.falls != self.standing.falls:
            self.pace.falls = self.standing.falls
            self.learner.reschedule()

    def dump(self) -> Saved:
        """Return everything that must survive a restart; collective, the same on every process."""
        rank_state: RankState = {"loader": self.loader.state(), "generators": generators.state()}
        return {
            "step": self.step,
            "epoch": self.epoch,
            "recalibrated": self.recalibrated,
            "metrics": self.metrics,
            "standing": self.standing.state(),
            **self.learner.state(),
            "growth": self.growth.state(),
            "cost": self.cost.state(),
            "history": self.history.state(),
            "ranks": self._world.gather(rank_state),
        }


def _own(saved: Saved, world: World) -> RankState | None:
    """Return this process's part of a checkpoint; None if the number of processes has changed."""
    ranks = saved["ranks"]
    return ranks[world.rank] if len(ranks) == world.world_size else None
