"""Make one run: a training that ends, with learning rate zero, when its budget is spent.

Cost is counted in steps of the plain network: every step counts with the price of the network at
that time. The cost of growing and cutting is reported separately. It does not grow with the length
of a training: in one a hundred times as long it is negligible, here it would hide the rest.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

import dyrep
from benchmarks.growth_study.arms import ARMS, WARM_UP, evolver, prepare
from benchmarks.growth_study.data import Images, augment
from benchmarks.growth_study.networks import NETWORKS
from benchmarks.growth_study.prices import Price, Prices, sgd
from benchmarks.growth_study.shelf import Run, Shelf


@dataclass(frozen=True)
class Size:
    """The size of the study; tests use a small one.

    Args:
        train, test: Numbers of images.
        watch: Number of test images for the curve.
        epochs: Epochs of plain, which define the budget.
        batch: Images of a step.
        points: Points of the curve.
        pairs: Pairs of steps timed for a price.
    """

    train: int = 10_000
    test: int = 10_000
    watch: int = 2_000
    epochs: int = 8
    batch: int = 128
    points: int = 8
    pairs: int = 9

    @property
    def steps(self) -> int:
        """Number of steps of plain."""
        return self.epochs * (self.train // self.batch)


class Training:
    """A network in training, with its cost so far and its results.

    `paid` is the cost of its changes, in steps of the plain network.

    Args:
        structure: The final structure of the arm that this one is like, if any.
    """

    def __init__(
        self, run: Run, images: Images, size: Size, shelf: Shelf, structure: dict | None = None
    ) -> None:
        self.run, self.images, self.size, self.arm = run, images, size, ARMS[run.arm]
        torch.manual_seed(run.seed)
        self.model = NETWORKS[run.network]()
        prepare(self.model, self.arm, run.seed, structure)
        self.optimizer = sgd(self.model, run.rate)
        self.moments = list(self.arm.at)
        self.evolver = self._evolver()
        self.prices = Prices(shelf, run.network, size.batch, size.pairs)
        self.order = torch.Generator().manual_seed(run.seed)
        self.cost, self.paid, self.steps, self.finite = 0.0, 0.0, 0, True
        self.curve: list[dict[str, float]] = []
        self.changes: list[dict[str, Any]] = []
        self.price = self._price()

    def __call__(self) -> dict[str, Any]:
        """Train to the end and return the fields of a row."""
        cpu, wall = time.process_time(), time.perf_counter()
        for batch, labels in batches(self.images, self.size.batch, self.order):
            if self.progress >= 1 or not self.finite:
                break
            self.step(batch, labels)
            if self.progress * self.size.points >= len(self.curve) + 1:
                self._look()
            if self.moments and self.progress >= self.moments[0]:
                self._change()
        accuracy, loss = test(self.model, self.images.test, self.images.test_labels)
        return {
            "accuracy": accuracy,
            "loss": loss if math.isfinite(loss) else None,
            "diverged": not self.finite,
            "steps": self.steps,
            "cost": self.cost,
            "changing": self.paid,
            "plain_steps": self.size.steps,
            "price": self.price.__dict__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "curve": self.curve,
            "changes": self.changes,
            "structure": dyrep.structure(self.model),
            "size": self.size.__dict__,
            "cpu_seconds": time.process_time() - cpu,
            "seconds": time.perf_counter() - wall,
        }

    @property
    def progress(self) -> float:
        """The spent share of the budget; the last step is the one that comes nearest to 1."""
        if self.arm.by_steps:
            return self.steps / self.size.steps
        budget = self.arm.budget * self.size.steps
        return self.cost / budget if self.cost + self.price.ratio / 2 <= budget else 1.0

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch, images (N, 1, 28, 28), and add the cost of the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.rate * schedule(self.progress)
        self.model.train()
        loss = cross_entropy(self.model(augment(images, self.order)), labels)
        loss.backward()
        if self.evolver and self.progress >= self.arm.watches_from:
            self.evolver.accumulate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.finite = math.isfinite(loss.item())
        self.cost += self.price.ratio
        self.steps += 1

    def _change(self) -> None:
        """Grow and cut, and add the cost of that to `paid`."""
        assert self.evolver is not None
        share = self.moments.pop(0)
        shown = self.images.train.split(self.size.batch)[: self.arm.shown]
        begun = time.process_time()
        events = self.evolver.adjust(list(shown) or None)
        paid = (time.process_time() - begun) / self.price.plain_seconds
        self.paid += paid
        if not self.moments:
            self.evolver = None
        self.price = self._price()
        done = [[event.action, event.layer, event.branches] for event in events]
        self.changes.append({"share": share, "done": done, "paid": paid, **self.price.__dict__})

    def _look(self) -> None:
        watch = slice(self.size.watch)
        accuracy, _ = test(self.model, self.images.test[watch], self.images.test_labels[watch])
        self.curve.append({"cost": self.cost, "steps": self.steps, "accuracy": accuracy})

    def _evolver(self) -> dyrep.DyRep | None:
        if not self.moments:
            return None
        return evolver(self.model, self.optimizer, self.arm, self.run.seed)

    def _price(self) -> Price:
        """Return the price of a step; before the arm watches, the price is that with watching."""
        return self.prices.of(self.model, self.arm, watched=self.evolver is not None)


def schedule(progress: float) -> float:
    """Return the factor of the learning rate: a linear rise, then a cosine fall to zero."""
    if progress < WARM_UP:
        return 0.1 + 0.9 * progress / WARM_UP
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def batches(images: Images, size: int, order: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches, epoch after epoch, each epoch in a new order."""
    while True:
        for chosen in torch.randperm(len(images.train), generator=order).split(size):
            if len(chosen) == size:
                yield images.train[chosen], images.train_labels[chosen]


@torch.no_grad()
def test(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy in percent and mean loss in eval mode."""
    model.eval()
    logits = torch.cat([model(batch) for batch in images.split(500)])
    accuracy = logits.argmax(1).eq(labels).float().mean().item()
    return 100 * accuracy, cross_entropy(logits, labels).item()
