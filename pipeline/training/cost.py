"""Measure the cost of a training as work, in steps of the plain network.

Seconds depend on the machine and on other programs as much as on the method. Therefore the current
and the plain network are timed side by side, in alternating steps, when the training begins and
after each change of structure. Their ratio is the price of a step, in plain steps. The prices of
all steps are summed, and the time for growing, cutting and measuring is added. Checkpoints keep the
sums, so a resumed training measures nothing twice.

Under a budget with `train.deterministic`, FLOPs are counted instead, because with measured prices
the training would end at a different step each time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from dyrep.block import blocks
from dyrep.budget import step_seconds
from dyrep.cost import cost
from pipeline.config import Config
from pipeline.contract.world import World
from pipeline.networks import architectures
from pipeline.training import device, generators

FEWEST, MOST = 5, 15  # number of timed pairs of steps, after one to warm up
LONGEST = 5.0  # seconds; at least one pair is timed, however long it takes
SHARE = 0.005  # of the time of the remaining steps; limits the pairs beyond the fewest
STEP = 3  # a step costs as much as three forwards: the backward counts as two
NO_ROOM = "GPU memory does not hold the plain network beside the present one"


class Price(NamedTuple):
    """The price of a step, and the cost of measuring it; both in plain steps."""

    per_step: float
    took: float


class CostState(TypedDict, total=False):
    """The sums that a checkpoint keeps; a checkpoint of an older version lacks some of them."""

    per_step: float | None
    plain_steps: float | None
    adjusting: float
    last_adjustment: float
    compile_seconds: float | None


class Cost:
    """The cost of one training, counted step by step.

    Args:
        config: the configuration; its model is the plain network.
        classes: number of classes of the classifier.
        saved: the saved result of `state`; None for a training that begins.
    """

    def __init__(self, config: Config, classes: int, saved: CostState | None) -> None:
        self._config, self._classes = config, classes
        self.budgeted = config.train.budget.plain_epochs is not None
        self._flops = self.budgeted and config.train.deterministic
        begun: CostState = {"per_step": 1.0, "plain_steps": 0.0} if saved is None else saved
        self.per_step = begun.get("per_step")
        self.plain_steps = begun.get("plain_steps")  # None: some steps have no known price
        self.adjusting = begun.get("adjusting", 0.0)  # the part of it that was not training steps
        self.last_adjustment = begun.get("last_adjustment", 0.0)
        self.compile_seconds = begun.get("compile_seconds")  # None: nothing was compiled

    @property
    def price(self) -> float:
        """The price of a step; always known under a budget."""
        assert self.per_step is not None
        return self.per_step

    @property
    def spent(self) -> float:
        """The cost of the training so far; always known under a budget."""
        assert self.plain_steps is not None
        return self.plain_steps

    def count(self) -> None:
        """Add a step of the current network."""
        if self.plain_steps is not None:
            price = self.per_step
            self.plain_steps = None if price is None else self.plain_steps + price

    @contextmanager
    def changing(self, world: World, step_seconds: float) -> Iterator[None]:
        """Add the cost of an adjustment, by the clock of the main process; collective.

        Args:
            world: all processes.
            step_seconds: duration of a step before the change.
        """
        if self._flops:
            from torch.utils.flop_counter import FlopCounterMode  # imports triton

            plain = cost(self._plain(world.device), self._batch(world))
            with FlopCounterMode(display=False) as counter:
                yield
            whole = STEP * plain.flops * len(self._batch(world))
            self._spend(world.from_main(lambda: counter.get_total_flops() / whole))
            return
        begun, price = time.perf_counter(), self.per_step
        yield
        seconds = world.from_main(lambda: time.perf_counter() - begun)
        if price is not None:
            self._spend(seconds / world.from_main(lambda: step_seconds) * price)

    def _spend(self, plain_steps: float) -> None:
        self.adjusting += plain_steps
        if self.plain_steps is not None:
            self.plain_steps += plain_steps

    def compiled(self, seconds: float) -> None:
        """Add the seconds spent compiling."""
        self.compile_seconds = (self.compile_seconds or 0.0) + seconds

    def renew(
        self, world: World, model: nn.Module, autocast: AbstractContextManager[Any], steps: int
    ) -> str:
        """Measure a step of `model` on the main process; return a note if that failed. Collective.

        Args:
            world: all processes.
            model: the network with its branches.
            autocast: the precision of the training.
            steps: number of remaining steps.
        """
        batch = self._batch(world)
        found = world.from_main(lambda: self.measure(model, batch, autocast, steps))
        if found is None and self.budgeted:
            self.per_step = world.from_main(lambda: self._times_flops(model, batch))
            return f"what a step costs is counted in FLOPs: {NO_ROOM}"
        if found is None:
            self.per_step = None
            return f"what a step costs is not known: {NO_ROOM}"
        self.per_step, took = found
        self._spend(took)
        return ""

    def measure(
        self, model: nn.Module, batch: Tensor, autocast: AbstractContextManager[Any], steps: int
    ) -> Price | None:
        """Return the price of a step of `model`; None if both networks do not fit into memory.

        The model is copied; its state and all random generators are unchanged, and the peak memory
        statistics are reset afterwards.
        """
        if not blocks(model):
            return Price(1.0, 0.0)
        if self._flops:
            return Price(self._times_flops(model, batch), 0.0)
        try:
            plain = self._plain(batch.device)
            batch = batch.contiguous(memory_format=device.layout(batch.device, self._config.train))
            with generators.kept():
                return _times_plain(copy.deepcopy(model), plain, batch, autocast, steps)
        except torch.OutOfMemoryError:
            return None
        finally:
            if batch.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(batch.device)

    def measuring(self, price: float) -> float:
        """Return the least cost of measuring a step of a network at about this price."""
        return 0.0 if self._flops else (1 + FEWEST) * (1 + price)

    def _times_flops(self, model: nn.Module, batch: Tensor) -> float:
        plain = self._plain(batch.device)
        return max(1.0, cost(model, batch).flops / cost(plain, batch).flops)

    def _plain(self, where: torch.device) -> nn.Module:
        channels = self._config.data.channels
        with generators.kept():
            plain = architectures.build(self._config.model, self._classes, channels).to(where)
        return plain.to(memory_format=device.layout(where, self._config.train))

    def _batch(self, world: World) -> Tensor:
        """Return noise with the shape of the batch that a process sends through its network."""
        data, train = self._config.data, self._config.train
        count = train.batch_size // (world.world_size * train.accumulate)
        shape = (count, data.channels, data.image_size, data.image_size)
        generator = torch.Generator(world.device).manual_seed(0)
        return torch.randn(shape, generator=generator, device=world.device)

    def numbers(self) -> dict[str, float]:
        """Return the cost fields of an epoch's row, except unknown and inapplicable ones."""
        fields = {
            "plain_steps": self.plain_steps,
            "step_cost": self.per_step,
            "adjusting_steps": self.adjusting or None,
            "compile_seconds": self.compile_seconds,
        }
        return {name: round(value, 4) for name, value in fields.items() if value is not None}

    def state(self) -> CostState:
        """Return the sums that a checkpoint keeps."""
        return {
            "per_step": self.per_step,
            "plain_steps": self.plain_steps,
            "adjusting": self.adjusting,
            "last_adjustment": self.last_adjustment,
            "compile_seconds": self.compile_seconds,
        }


def _times_plain(
    model: nn.Module,
    plain: nn.Module,
    batch: Tensor,
    autocast: AbstractContextManager[Any],
    steps: int,
) -> Price:
    """Return the time of a step relative to the plain network, from the fastest step of each.

    Other programs only add time, so the fastest step is the best estimate. The plain network is
    part of the other network, so a ratio below 1 is a measurement error.
    """

    def seconds(network: nn.Module) -> float:
        with autocast:  # entered per step, as in training: its cache of casts lasts as long
            return step_seconds(network, batch)

    entered = time.perf_counter()
    seconds(model), seconds(plain)  # warm-up
    begun = time.perf_counter()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < MOST:
        pairs.append((seconds(model), seconds(plain)))
        spent, (grown, _) = time.perf_counter() - begun, pairs[-1]
        if spent > LONGEST or (len(pairs) >= FEWEST and spent > SHARE * steps * grown):
            break
    times, plain_times = zip(*pairs, strict=True)
    took = (time.perf_counter() - entered) / min(plain_times)
    return Price(max(1.0, min(times) / min(plain_times)), took)
