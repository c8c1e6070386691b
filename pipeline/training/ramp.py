"""Find the learning rate at which the loss falls fastest, by a short training with a rising rate.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, section 3.3
(arXiv 1506.01186). Taking the rate of the steepest fall is fastai's rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.contract.world import World
from pipeline.display.errors import UserError
from pipeline.training import device, generators
from pipeline.training.cost import Cost
from pipeline.training.images import Images
from pipeline.training.learner import Learner
from pipeline.training.mixing import Mixing
from pipeline.training.pace import Pace

SMOOTHING = 0.9  # decay of the moving average of the losses
DIVERGED = 4.0  # the ramp ends when the smoothed loss exceeds this multiple of its lowest value
SETTLING = 0.1  # first share of the steps, which is ignored: the average holds too few losses


@dataclass(frozen=True)
class Found:
    """The losses of a ramp, and the learning rates that follow from them.

    `rates`, `losses` and `smoothed` have one value per step; `suggestion` is the rate at which the
    smoothed loss falls fastest, `lowest` the rate at which the smoothed loss is lowest.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    lowest: float

    @property
    def rows(self) -> list[tuple[float, float, float]]:
        """The rate, loss and smoothed loss of each step."""
        return list(zip(self.rates, self.losses, self.smoothed, strict=True))


class Ramp(Pace):
    """A pace at which the learning rate rises by the same factor in each step."""

    def __init__(self, config: Config, cost: Cost, rates: Sequence[float]) -> None:
        super().__init__(config.train, len(rates), cost)
        self._shares = [rate / config.train.lr for rate in rates]

    def lr_factor(self, step: int) -> float:
        return self._shares[min(step, len(self._shares) - 1)]


def rise(low: float, high: float, steps: int) -> list[float]:
    """Return learning rates from `low` to `high`, each the same multiple of the one before."""
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def climb(config: Config, folder: Path, rates: Sequence[float]) -> list[float]:
    """Train with one rate after the other; return the loss of each step until it diverges.

    The network starts as it does in a training, with its optimizer, augmentation and precision.

    Args:
        config: the configuration of a training.
        folder: the folder of the prepared data.
        rates: learning rates, one per step.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    world = World(rank=0, world_size=1, device=torch.device(kind), hang_timeout=600)
    device.configure(world.device, config.train)
    generators.seed(config.seed)
    images = Images(config, folder, world, lambda seconds: None)
    cost = Cost(config, images.classes, None)
    learner = Learner(config, world, images.classes, Ramp(config, cost, rates), None)
    mixing = Mixing(config.train, images.classes, config.data.image_size)
    learner.wrap()
    learner.train()
    losses: list[float] = []
    while len(losses) < len(rates):
        for batch in images.training(since=len(losses)):
            losses.append(float(learner.update(mixing(batch, 0), lambda scaler: None)))
            if len(losses) == len(rates) or _has_diverged(losses):
                return losses
    return losses


def _has_diverged(losses: list[float]) -> bool:
    smooth = smoothed(losses)
    return not math.isfinite(losses[-1]) or smooth[-1] > DIVERGED * min(smooth)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average, without its bias to zero at the beginning."""
    found, average = [], 0.0
    for count, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.append(average / (1 - SMOOTHING**count))
    return found


def judge(rates: Sequence[float], losses: Sequence[float]) -> Found:
    """Return the losses, and the rate at which the smoothed loss falls fastest per log rate.

    Raises:
        UserError: the loss falls at none of the rates.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    smooth = smoothed(finite)
    lowest = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    slopes = {  # only up to the lowest loss: a later fall only undoes a divergence
        at: (smooth[at + 1] - smooth[at - 1]) / math.log(rates[at + 1] / rates[at - 1])
        for at in range(max(1, round(SETTLING * len(rates))), lowest)
    }
    steepest = min(slopes, key=slopes.__getitem__, default=None)
    if steepest is None or slopes[steepest] >= 0:
        raise UserError(
            f"the loss falls at no learning rate from {rates[0]:.3g} to "
            f"{rates[max(0, len(finite) - 1)]:.3g}; try a lower --low, or more --steps"
        )
    count = len(finite)
    return Found(
        list(rates[:count]), finite, smooth, suggestion=rates[steepest], lowest=rates[lowest]
    )
