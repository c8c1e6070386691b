"""Let the processes of a training agree when to save and when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.contract.world import World
from pipeline.training.saver import Saver

EVERY = 1.0  # approximate seconds between two exchanges


class Agreement:
    """Decides for all processes, about once a second, whether to stop or to save after a step.

    The processes exchange their wishes after the same step, and agree on the step of the next
    exchange: after as many steps as the main process makes in a second, at most twice as many as
    the last time, and not later than the next save by steps. A single process decides after each
    step.
    """

    def __init__(self, world: World, saver: Saver, stop_requested: Callable[[], bool]) -> None:
        self._world, self._saver, self._stop_requested = world, saver, stop_requested
        self._next, self._steps = 0, 1
        self._exchanged = time.monotonic()

    def after(self, step: int) -> tuple[bool, bool]:
        """Return whether to stop and whether to save after a step; equal on every process."""
        if step < self._next:
            self._world.beat()
            return False, False
        main = self._world.main
        stop, save, steps = self._world.sums(
            self._stop_requested(),
            main and self._saver.due(step),
            self._affordable(step) if main else 0,
        )
        self._next, self._steps = step + int(steps), int(steps)
        return bool(stop), bool(save)

    def _affordable(self, step: int) -> int:
        """Return the number of steps to the next exchange."""
        if self._world.alone:
            return 1
        now = time.monotonic()
        each, self._exchanged = (now - self._exchanged) / self._steps, now
        return max(1, min(2 * self._steps, round(EVERY / each), self._saver.steps_left(step)))
