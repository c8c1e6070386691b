"""Measure the cost of a step in steps of the plain network, side by side in one process.

A step is forward, backward, watching the gradients if the arm does that, and the optimizer. CPU
time is measured, which does not include waiting for other processes, and the median over pairs
removes the remaining disturbances. A form is measured once per machine and results folder, so that
all runs of the form make the same number of steps.
"""

import copy
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dyrep
from benchmarks.growth_study.arms import Arm, evolver
from benchmarks.growth_study.networks import CLASSES, NETWORKS
from benchmarks.growth_study.shelf import Shelf
from dyrep.block import blocks
from dyrep.fusion import plain_copy
from dyrep.promise import EVERY

WARM_UP = 2


@dataclass(frozen=True)
class Price:
    """The price of a step: its `ratio` to a plain one; half of the pairs are in `low` to `high`.

    `plain_seconds` is the CPU time of the plain step in the same measurement.
    """

    ratio: float
    low: float
    high: float
    plain_seconds: float


class Prices:
    """Measures prices, or returns those that were measured before."""

    def __init__(self, shelf: Shelf, network: str, batch: int, pairs: int) -> None:
        self._shelf, self._network, self._batch, self._pairs = shelf, network, batch, pairs

    def of(self, model: nn.Module, arm: Arm, watched: bool) -> Price:
        """Return the price of a step of the network in its current form; do not change it."""
        watching = [arm.by.__name__, dict(arm.evolves or {})] if watched else None
        form = digest([self._network, self._batch, dyrep.structure(model), watching])
        known = self._shelf.price(form)
        if known is None:
            known = asdict(self._measure(model, arm if watched else None))
            self._shelf.add_price(form, known)
        return Price(**known)

    def _measure(self, model: nn.Module, watching: Arm | None) -> Price:
        with torch.random.fork_rng():
            plain = _step(_plain(self._network, model), self._batch, None)
            step = _step(copy.deepcopy(model), self._batch, watching)
        steps = range(1 if watching is None else EVERY)  # watching samples one of so many
        pairs = [
            (sum(step() for _ in steps), sum(plain() for _ in steps))
            for _ in range(WARM_UP + self._pairs)
        ][WARM_UP:]
        plain_seconds = statistics.median(theirs for _, theirs in pairs) / len(steps)
        if not blocks(model) and watching is None:
            return Price(1.0, 1.0, 1.0, plain_seconds)
        low, ratio, high = statistics.quantiles((ours / theirs for ours, theirs in pairs), n=4)
        return Price(max(ratio, 1.0), low, high, plain_seconds)  # a ratio below 1 is noise


def _plain(network: str, model: nn.Module) -> nn.Module:
    """Return the plain network with a model's weights, because they affect the time of a step."""
    plain = NETWORKS[network]()
    plain.load_state_dict(plain_copy(model).state_dict(), strict=False)
    return plain


def _step(model: nn.Module, batch: int, watching: Arm | None) -> Callable[[], float]:
    """Return a function that makes one step on noise and returns its CPU seconds."""
    images, labels = torch.randn(batch, 1, 28, 28), torch.randint(0, CLASSES, (batch,))
    optimizer = sgd(model, 1e-4)
    accumulate = evolver(model, None, watching, 0).accumulate if watching else lambda: None

    def run() -> float:
        begun = time.process_time()
        cross_entropy(model(images), labels).backward()
        accumulate()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - begun

    return run


def digest(form: object) -> str:
    """Return a short hash that identifies the measured form."""
    return hashlib.sha256(json.dumps(form).encode()).hexdigest()[:16]


def sgd(model: nn.Module, rate: float) -> torch.optim.SGD:
    """Return the optimizer of all arms, in which biases, norms and strengths do not decay."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
