"""What a step costs, in steps of the plain network: timed side by side in one process.

A step is forward, backward, watching the gradients where the arm does, and the optimizer. CPU time
counts, so waiting for a busy neighbour does not; the median over pairs does the rest. A form
is measured once per machine and results folder: all runs of it make the same number of steps.
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
    """Of a step: `ratio` to a plain one, half of the pairs between `low` and `high`.

    `plain_seconds` is the CPU time of the plain step meanwhile.
    """

    ratio: float
    low: float
    high: float
    plain_seconds: float


class Prices:
    """Measures prices, or finds them among those measured before."""

    def __init__(self, shelf: Shelf, network: str, batch: int, pairs: int) -> None:
        self._shelf, self._network, self._batch, self._pairs = shelf, network, batch, pairs

    def of(self, model: nn.Module, arm: Arm, watched: bool) -> Price:
        """Return what a step of the network costs as it is now; it stays as it is."""
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
        steps = range(1 if watching is None else EVERY)  # watching takes one of so many
        pairs = [
            (sum(step() for _ in steps), sum(plain() for _ in steps))
            for _ in range(WARM_UP + self._pairs)
        ][WARM_UP:]
        plain_seconds = statistics.median(theirs for _, theirs in pairs) / len(steps)
        if not blocks(model) and watching is None:
            return Price(1.0, 1.0, 1.0, plain_seconds)
        low, ratio, high = statistics.quantiles((ours / theirs for ours, theirs in pairs), n=4)
        return Price(max(ratio, 1.0), low, high, plain_seconds)  # less than plain is noise


def _plain(network: str, model: nn.Module) -> nn.Module:
    """Return the plain network with the weights of a model: how long a step takes is theirs too."""
    plain = NETWORKS[network]()
    plain.load_state_dict(plain_copy(model).state_dict(), strict=False)
    return plain


def _step(model: nn.Module, batch: int, watching: Arm | None) -> Callable[[], float]:
    """Return a function that makes one step on noise and tells its CPU seconds."""
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
    """Return a short name of what was measured."""
    return hashlib.sha256(json.dumps(form).encode()).hexdigest()[:16]


def sgd(model: nn.Module, rate: float) -> torch.optim.SGD:
    """Return the optimizer of all arms: biases, norms and strengths do not decay."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
