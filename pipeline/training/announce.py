"""Print the progress of a training, on its main process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from pipeline.contract.stage import Context
from pipeline.contract.world import World
from pipeline.records import attempt
from pipeline.records.environment import more_cores
from pipeline.training.pace import Pace

PHASES = ("processes", "imports", "checkpoint", "first_step")  # phases of the start-up
MUCH_WAITING = 0.1  # share of an epoch spent waiting for data, above which a warning is printed


class Announcer:
    """Reports progress, prints lines to the log, and measures the start-up time of a training."""

    pace: Pace  # set before the first call of `progress`

    def __init__(self, context: Context, world: World) -> None:
        self._context, self._main = context, world.main
        self._marks = [context.started]
        self._warned_of_waiting = False
        self._begun: tuple[float, int] | None = None  # time and number of the first step
        self._adjustments: list[float] = []  # seconds per adjustment
        self._earlier = 0  # adjustments before the first step, as at a resume

    def say(self, text: str) -> None:
        """Print a line."""
        if self._main:
            print(text, flush=True)

    def progress(
        self, step: int, metrics: dict[str, float], doing: str = "", adjustments: int = 0
    ) -> None:
        """Report the progress after `step`.

        `adjustments` is the number of adjustments to come. Until one was timed, the remaining time
        does not include them, and the text names their number instead.
        """
        if self._main:
            accuracy = f", top-1 {metrics['top1']:.1f} %" if metrics else ""
            text = f"{self._where(step)}{accuracy}{f', {doing}' if doing else ''}"
            if adjustments and not self._adjustments:
                text += f", {adjustments} adjustment{'s' * (adjustments != 1)} to come"
            left = self.pace.steps_left(step)
            self._context.progress(step, step + left, text, self._eta(step, left, adjustments))

    def _eta(self, step: int, left: int, adjustments: int) -> float | None:
        """Return the remaining seconds for steps and adjustments; None if not yet known."""
        if self._begun is None or step == self._begun[1]:
            return None
        when, since = self._begun
        spent = sum(self._adjustments[self._earlier :])
        each = statistics.fmean(self._adjustments) if self._adjustments else 0.0
        return left * (time.monotonic() - when - spent) / (step - since) + adjustments * each

    @contextmanager
    def adjusting(self) -> Iterator[None]:
        """Measure the time of an adjustment."""
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
        """Mark the end of one of the `PHASES`, except the first and the last."""
        self._marks.append(time.time())

    def first_step(self, step: int, loader: str) -> None:
        """Print which loader is used, and the time from the start of the attempt to this step."""
        self._begun, self._earlier = (time.monotonic(), step), len(self._adjustments)
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
        """Warn once if data loading is the bottleneck; `share` of the epoch was spent waiting."""
        if share > MUCH_WAITING and not self._warned_of_waiting:
            self._warned_of_waiting = True
            self.say(
                f"waiting for data {100 * share:.0f} % of the time: give it {more_cores()}smaller "
                "images (prep.shrink), or another data.loader"
            )
