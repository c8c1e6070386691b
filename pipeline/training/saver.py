"""When to save, and saving while training goes on.

Taking a snapshot holds the training up for one copy of its state; a thread writes it. Only one is
under way at a time. What could not be written (a full disk) is written anew at the next step, and
waited for: only when that fails, too, is it raised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.config.train import Checkpoint
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Facts, Snapshot

FIRST = 60.0  # seconds to the first save where the cost of one is not known yet
SHARE = 0.01  # of the time, at most, goes into saving


class Saver:
    """Writes the checkpoints of one training; in its main process only.

    Args:
        folder: Where they go.
        settings: How often, and how many are kept.
        may_write: Raises if this attempt may not write any more.
        saved: Told of each checkpoint on disk.
    """

    def __init__(
        self,
        folder: Path,
        settings: Checkpoint,
        may_write: Callable[[], None],
        saved: Callable[[Facts, float], None],
    ) -> None:
        self._folder, self._settings = folder, settings
        self._may_write, self._saved = may_write, saved
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[None] | None = None
        self._cost: float | None = None
        self._last_step, self._last_time = 0, time.monotonic()
        self.newest: str | None = None  # file of the newest state, on disk or under way

    def due(self, step: int) -> bool:
        """Return whether the interval since the last save is over, or that save failed."""
        if self._failed():
            return True
        if self._settings.interval == "auto":
            return time.monotonic() - self._last_time >= self.automatic_interval()
        count, unit = self._settings.interval.split()
        if unit.startswith("step"):
            return step - self._last_step >= int(count)
        return time.monotonic() - self._last_time >= 60 * int(count)

    def steps_left(self, step: int) -> int:
        """Return how many steps there are to the one after which a save is due, if known."""
        count, _, unit = self._settings.interval.partition(" ")
        return self._last_step + int(count) - step if unit.startswith("step") else 2**31

    def begin(self, step: int, file: str | None) -> None:
        """Count the interval from here, where the newest state is in `file`."""
        self._last_step, self._last_time, self.newest = step, time.monotonic(), file

    def save(self, facts: Facts, state: Any) -> None:
        """Take a snapshot now and write it in the background.

        Raises:
            OSError: the one before could not be written, and neither can this one.
            Superseded: this attempt may not write any more.
        """
        start = time.monotonic()
        again = False
        try:
            self.wait()
        except OSError:
            again = True
        taken = checkpoint.snapshot(state)
        self.begin(facts.step, facts.name)
        self._under_way = self._thread.submit(self._write, facts, taken, time.monotonic() - start)
        if again:
            self.wait()

    def wait(self) -> None:
        """Wait until what is under way is on disk.

        Raises:
            OSError: it could not be written.
            Superseded: this attempt may not write any more.
        """
        if self._under_way:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def _failed(self) -> bool:
        save = self._under_way
        return save is not None and save.done() and save.exception() is not None

    def _write(self, facts: Facts, taken: Snapshot, held_up: float) -> None:
        start = time.monotonic()
        self._may_write()
        checkpoint.save(self._folder, facts, taken)
        checkpoint.prune(self._folder, self._settings.keep)
        self._cost = held_up + time.monotonic() - start
        self._saved(facts, self._cost)

    def automatic_interval(self) -> float:
        """Return the seconds that lose the least: Young's sqrt(2 · cost · time between failures).

        The cost counts the writing as well, which takes cores from a training on CPUs (J. W. Young,
        "A first order approximation to the optimum checkpoint interval", CACM 1974).
        """
        if self._cost is None:
            return FIRST
        between = 3600 * self._settings.interruption_hours
        return max(math.sqrt(2 * self._cost * between), self._cost / SHARE)
