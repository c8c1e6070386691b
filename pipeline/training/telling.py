"""What a training says while it goes on; its main process only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from pipeline.contract.stage import Context
from pipeline.execution.world import World
from pipeline.records import attempt
from pipeline.training.pace import Pace

PHASES = ("processes", "imports", "checkpoint", "first_step")  # from the attempt to its first step
MUCH_WAITING = 0.1  # share of an epoch


class Telling:
    """The words of one training: progress, lines in its log, and how long it took to start."""

    pace: Pace  # set as soon as it is known, before the first `progress`

    def __init__(self, context: Context, world: World) -> None:
        self._context, self._main = context, world.main
        self._marks = [context.started]
        self._told_waiting = False
        self._begun: tuple[float, int] | None = None  # when, and with which step, this attempt did
        self._adjustments: list[float] = []  # seconds of each

    def say(self, text: str) -> None:
        """Print a line."""
        if self._main:
            print(text, flush=True)

    def progress(
        self, step: int, metrics: dict[str, float], doing: str = "", adjustments: int = 0
    ) -> None:
        """Report where the training is: after `step`, in the epoch of that step.

        `adjustments` of the structure are to come; while none was timed, the time they will take is
        not in what is said to remain, and they are named instead.
        """
        if self._main:
            accuracy = f", top-1 {metrics['top1']:.1f} %" if metrics else ""
            text = f"{self._where(step)}{accuracy}{f', {doing}' if doing else ''}"
            if adjustments and not self._adjustments:
                text += f", and {adjustments} adjustment{'s' * (adjustments != 1)}"
            left = self.pace.steps_left(step)
            self._context.progress(step, step + left, text, self._eta(step, left, adjustments))

    def _eta(self, step: int, left: int, adjustments: int) -> float | None:
        """Return the seconds that the steps and adjustments to come take, if that can be told."""
        if self._begun is None or step == self._begun[1]:
            return None
        when, since = self._begun
        spent = sum(self._adjustments)
        each = spent / len(self._adjustments) if self._adjustments else 0.0
        return left * (time.monotonic() - when - spent) / (step - since) + adjustments * each

    @contextmanager
    def adjusting(self) -> Iterator[None]:
        """Time what is done within, which is no step."""
        begun = time.monotonic()
        yield
        self._adjustments.append(time.monotonic() - begun)

    def _where(self, step: int) -> str:
        pace = self.pace
        epoch = f"epoch {-(-step // pace.steps_per_epoch) or 1}"
        if not pace.budgeted:
            return f"{epoch}/{pace.epochs}"
        return f"{epoch}, spent {pace.plain_epochs(step):.1f} of {pace.epochs:g} plain epochs"

    def mark(self) -> None:
        """Note that one of the `PHASES` has ended, but for the first and the last."""
        self._marks.append(time.time())

    def first_step(self, step: int, loader: str) -> None:
        """Say how long it took from the start of the attempt to its first step, and on what."""
        self._begun = time.monotonic(), step
        if not self._main:
            return
        self.say(loader)
        times = [attempt.last(self._context.dir).time, *self._marks, time.time()]
        took = [end - begin for begin, end in pairwise(times)]
        seconds = {name: round(value, 2) for name, value in zip(PHASES, took, strict=True)}
        self._context.event("first_step", step=step, seconds=seconds)
        parts = ", ".join(f"{name} {value}" for name, value in seconds.items())
        self.say(f"first step after {sum(took):.1f} s ({parts})")

    def waiting(self, share: float) -> None:
        """Say once if the images are the bottleneck: the share of an epoch spent without any."""
        if share > MUCH_WAITING and not self._told_waiting:
            self._told_waiting = True
            self.say(
                f"waiting for data {100 * share:.0f} % of the time: give it more cores "
                "(cluster.cpus_per_process), smaller images (prep.shrink), or another data.loader"
            )
