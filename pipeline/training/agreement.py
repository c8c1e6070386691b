"""Whether to save or to leave, agreed between the processes of a training."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.execution.world import World
from pipeline.training.saver import Saver

EVERY = 1.0  # seconds between two agreements, about


class Agreement:
    """Asks all processes about once a second, each after the same step; one asks itself each time.

    When they ask next is part of what they agree on: as many steps later as the main process makes
    in a second, at most twice as many as the last time, and never beyond a step after which a save
    is due.
    """

    def __init__(self, world: World, saver: Saver, stop_requested: Callable[[], bool]) -> None:
        self._world, self._saver, self._stop_requested = world, saver, stop_requested
        self._next, self._steps = 0, 1
        self._asked = time.monotonic()

    def after(self, step: int) -> tuple[bool, bool]:
        """Return whether to stop and whether to save after a step, the same in every process."""
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
        """Return after how many steps to ask again."""
        if self._world.alone:
            return 1
        now = time.monotonic()
        each, self._asked = (now - self._asked) / self._steps, now
        return max(1, min(2 * self._steps, round(EVERY / each), self._saver.steps_left(step)))
