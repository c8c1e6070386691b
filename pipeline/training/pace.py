"""Map the progress of a training to its learning rate, its growth and its end."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.config.train import Train
from pipeline.training.cost import Cost

TINY = 1e-6  # steps; tolerance for rounding errors in sums of prices
RISE = 0.3  # onecycle: share of the training in which the rate rises
LOW, LAST = 1 / 25, 1 / 25e4  # onecycle: first and last rate, as shares of the learning rate
TANH = -7.0, 3.0  # tanh: its argument at the start and at the end, as in timm
TAIL = 0.2  # wsd, rsqrt: last share of the time after warm-up, in which the rate falls to zero


def _cosine(way: float, begin: float = 1.0, end: float = 0.0) -> float:
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * way))


def _onecycle(way: float) -> float:
    """Rise, then fall below the first rate, like torch's OneCycleLR without its momentum cycle."""
    if way < RISE:
        return _cosine(way / RISE, LOW, 1.0)
    return _cosine((way - RISE) / (1 - RISE), 1.0, LAST)


SHARES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": lambda way: 1.0 - way,
    "constant": lambda way: 1.0,
    "onecycle": _onecycle,
    "tanh": lambda way: 0.5 * (1 - math.tanh(TANH[0] + (TANH[1] - TANH[0]) * way)),
}
"""Schedules: map the progress after warm-up, 0 to 1, to a share of the learning rate."""
ENDS: dict[str, Callable[[float], float]] = {
    "wsd": lambda way: 1.0 - math.sqrt(way),
    "rsqrt": lambda way: 1.0 - way,
}
"""Schedules that fall to zero in their last epochs: map the progress of that fall to a share."""


def _restarts(done: float, first: float, growth: int) -> float:
    """Fall by cosines with restarts (SGDR, Loshchilov and Hutter, 2017, eq. 5).

    Torch has the same schedule as CosineAnnealingWarmRestarts.

    Args:
        done: steps since the first cosine began.
        first: steps of the first cosine.
        growth: each cosine is so many times as long as the one before.
    """
    length = first
    while done + TINY >= length:
        done, length = done - length, length * growth
    return _cosine(max(0.0, done) / length)


class Pace:
    """The progress of a training, in steps; under a budget, in plain steps spent.

    With `train.budget`, progress is the spent share of the budget: warm-up, schedule, growth and
    progressive resizing follow it, and no step is made that the budget does not cover. A network
    without branches trains identically with a budget and with that number of epochs.

    Args:
        recipe: settings of the training.
        steps_per_epoch: number of batches in a pass over the images.
        cost: plain steps spent so far, and the price of a step.
    """

    def __init__(self, recipe: Train, steps_per_epoch: int, cost: Cost) -> None:
        self.steps_per_epoch, self._cost = steps_per_epoch, cost
        self._budget = recipe.budget.plain_epochs
        self.epochs: float = self._budget or recipe.epochs
        self._warmup = recipe.warmup_epochs * steps_per_epoch
        self._total = self.epochs * steps_per_epoch
        self._recipe = recipe
        self.falls = 0  # with schedule=plateau: number of falls of the rate so far

    @property
    def budgeted(self) -> bool:
        """Whether there is a budget."""
        return self._budget is not None

    def position(self, step: int) -> float:
        """Return the progress after `step` steps, in steps or, under a budget, plain steps."""
        return self._cost.spent if self.budgeted else step

    def plain_epochs(self, step: int) -> float:
        """Return the progress in epochs; under a budget, in epochs of the plain network."""
        return self.position(step) / self.steps_per_epoch

    @property
    def price(self) -> float:
        """The progress that the next step makes."""
        return self._cost.price if self.budgeted else 1.0

    def steps_left(self, step: int) -> int:
        """Return the number of remaining steps; under a budget, at the current price."""
        return max(0, math.floor((self._total - self.position(step) + TINY) / self.price))

    def lr_factor(self, step: int) -> float:
        """Return the factor of the learning rate: a linear warm-up, then the schedule."""
        position = self.position(step)
        if position < self._warmup:
            return min(1.0, (position + 1) / self._warmup)
        way, rest = position - self._warmup, max(1, self._total - self._warmup)
        schedule = self._recipe.schedule
        if schedule in SHARES:
            return SHARES[schedule](min(way, rest) / rest)
        if schedule == "polynomial":
            return float((1.0 - min(way, rest) / rest) ** (self._recipe.decay_power or 1.0))
        if schedule == "restarts":
            first = (self._recipe.cycle_epochs or 1) * self.steps_per_epoch
            return _restarts(way, first, self._recipe.cycle_growth)
        if schedule in ENDS:
            return self._ending(min(way, rest), rest)
        return float(self._recipe.decay_rate ** self._fallen(position, way))

    def _ending(self, way: float, rest: float) -> float:
        """Return the factor of the learning rate of a schedule that falls to zero at the end.

        Before that fall, `wsd` is constant (MiniCPM, Hu et al., 2024), and `rsqrt` decreases with
        one over the square root of time, in units of the warm-up (Zhai et al., 2022); see timm's
        WSDLRScheduler.
        """
        schedule, after = self._recipe.schedule, self._recipe.decay_epochs
        tail = after * self.steps_per_epoch if isinstance(after, int) else TAIL * rest
        before = (1 + way / self._warmup) ** -0.5 if schedule == "rsqrt" else 1.0
        return before * ENDS[schedule](max(0.0, way - rest + tail) / tail)

    def _fallen(self, position: float, way: float) -> float:
        """Return the number of falls of the learning rate: by epochs, or after bad validations."""
        after = self._recipe.decay_epochs or 1
        if self._recipe.schedule == "plateau":
            return self.falls
        if isinstance(after, list):
            return sum(position + TINY >= epochs * self.steps_per_epoch for epochs in after)
        if self._recipe.schedule == "exponential":
            return way / (after * self.steps_per_epoch)
        return (position + TINY) // (after * self.steps_per_epoch)
