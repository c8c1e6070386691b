"""What a training costs, as work: in steps of the plain network.

Seconds tell as much of the machine and its neighbours as of the method. How many plain steps one
step of the present network costs is therefore measured side by side, a step of each in turn, when
the training begins and after each change of structure, and summed over the steps that are made.
Checkpoints keep it: a training that is continued measures nothing twice.
"""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from dyrep.block import blocks
from dyrep.budget import step_seconds
from pipeline.config import Config
from pipeline.execution.world import World
from pipeline.networks import architectures
from pipeline.training import device, generators

FEWEST, MOST = 5, 15  # pairs of steps, after one to warm up
LONGEST = 5.0  # seconds; one pair is timed however long it takes
SHARE = 0.005  # of the steps to come: what is timed beyond the fewest pairs takes no more


class Cost:
    """The work of one training, counted step by step.

    Args:
        config: Its model is the plain network.
        classes: Of the classifier.
        saved: What `state` returned; None for a training that begins.
    """

    def __init__(self, config: Config, classes: int, saved: dict[str, Any] | None) -> None:
        self._config, self._classes = config, classes
        begun = {"per_step": 1.0, "plain_steps": 0.0} if saved is None else saved
        self.per_step: float | None = begun.get("per_step")
        self.plain_steps: float | None = begun.get("plain_steps")  # None: not known of all steps
        self.compile_seconds: float | None = begun.get("compile_seconds")  # None: nothing was

    def count(self) -> None:
        """Add a step of the present network."""
        if self.plain_steps is not None:
            price = self.per_step
            self.plain_steps = None if price is None else self.plain_steps + price

    def compiled(self, seconds: float) -> None:
        """Add what compiling took."""
        self.compile_seconds = (self.compile_seconds or 0.0) + seconds

    def renew(
        self, world: World, model: nn.Module, autocast: AbstractContextManager[Any], steps: int
    ) -> str:
        """Have the main process measure a step of `model`; return what went wrong, if it did.

        Args:
            world: Of the processes, all of which are to call this.
            model: With its branches.
            autocast: The precision it is trained in.
            steps: Those to come.
        """
        self.per_step = world.from_main(
            lambda: self.measure(model, self._batch(world), autocast, steps)
        )
        if self.per_step is not None:
            return ""
        return (
            "what a step costs is not known: GPU memory does not hold the plain network beside the "
            "present one"
        )

    def measure(
        self, model: nn.Module, batch: Tensor, autocast: AbstractContextManager[Any], steps: int
    ) -> float | None:
        """Return how many plain steps a step of `model` costs; None where both do not fit.

        The model is copied; its weights and statistics and all generators stay as they are, and
        what it took counts for no later look at the most memory that was used.
        """
        if not blocks(model):
            return 1.0
        drawn = generators.state()
        try:
            layout = device.layout(batch.device, self._config.train)
            plain = architectures.build(self._config.model, self._classes).to(batch.device)
            plain.to(memory_format=layout)
            batch = batch.contiguous(memory_format=layout)
            return _times_plain(copy.deepcopy(model), plain, batch, autocast, steps)
        except torch.OutOfMemoryError:
            return None
        finally:
            generators.restore(drawn)
            if batch.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(batch.device)

    def _batch(self, world: World) -> Tensor:
        """Return noise of the size that a process trains on."""
        size = self._config.data.image_size
        shape = (self._config.train.batch_size // world.world_size, 3, size, size)
        generator = torch.Generator(world.device).manual_seed(0)
        return torch.randn(shape, generator=generator, device=world.device)

    def facts(self) -> dict[str, float]:
        """Return what an epoch tells: the work so far, and what a step costs
        now; what compiling took, if anything was.
        """
        told = {
            "plain_steps": self.plain_steps,
            "step_cost": self.per_step,
            "compile_seconds": self.compile_seconds,
        }
        return {name: round(value, 4) for name, value in told.items() if value is not None}

    def state(self) -> dict[str, float | None]:
        """Return what a checkpoint keeps."""
        return {
            "per_step": self.per_step,
            "plain_steps": self.plain_steps,
            "compile_seconds": self.compile_seconds,
        }


def _times_plain(
    model: nn.Module,
    plain: nn.Module,
    batch: Tensor,
    autocast: AbstractContextManager[Any],
    steps: int,
) -> float:
    """Return the seconds of a step over those of the plain network, the fastest of each in turn.

    What a neighbour on the machine takes only ever adds, so the fastest step tells most.
    """

    def seconds(network: nn.Module) -> float:
        with autocast:  # anew for each step, as in training: what was cast is kept within
            return step_seconds(network, batch)

    seconds(model), seconds(plain)  # warm-up
    begun = time.perf_counter()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < MOST:
        pairs.append((seconds(model), seconds(plain)))
        spent, (grown, _) = time.perf_counter() - begun, pairs[-1]
        if spent > LONGEST or (len(pairs) >= FEWEST and spent > SHARE * steps * grown):
            break
    times, plain_times = zip(*pairs, strict=True)
    return min(times) / min(plain_times)
