"""Decide when to save, and save while training continues.

A snapshot stops the training only for copying its state; a thread writes the copy. At most one
write runs at a time. If a write failed (a full disk), the state is saved again at the next step,
synchronously; the error is raised only if that fails too.
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
from pipeline.training.checkpoint import CheckpointInfo, Snapshot

FIRST = 60.0  # seconds to the first save, while the cost of a save is unknown
SHARE = 0.01  # largest share of the time that may be spent on saving


class Saver:
    """Writes the checkpoints of one training, on its main process.

    Args:
        folder: the folder of the checkpoints.
        settings: how often to save, and how many checkpoints to keep.
        may_write: raises if this attempt must not write any more.
        saved: called with the facts of each written checkpoint, and the seconds that it cost.
    """

    def __init__(
        self,
        folder: Path,
        settings: Checkpoint,
        may_write: Callable[[], None],
        saved: Callable[[CheckpointInfo, float], None],
    ) -> None:
        self._folder, self._settings = folder, settings
        self._may_write, self._saved = may_write, saved
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[None] | None = None
        self._cost: float | None = None
        self._last_step, self._last_time = 0, time.monotonic()
        self.newest: str | None = None  # file of the newest state, written or being written

    def due(self, step: int) -> bool:
        """Whether the interval since the last save has passed, or the last save failed."""
        if self._failed():
            return True
        if self._settings.interval == "auto":
            return time.monotonic() - self._last_time >= self.automatic_interval()
        count, unit = self._settings.interval.split()
        if unit.startswith("step"):
            return step - self._last_step >= int(count)
        return time.monotonic() - self._last_time >= 60 * int(count)

    def steps_left(self, step: int) -> int:
        """Return the number of steps to the next save if the interval counts steps."""
        count, _, unit = self._settings.interval.partition(" ")
        return self._last_step + int(count) - step if unit.startswith("step") else 2**31

    def begin(self, step: int, file: str | None) -> None:
        """Start the interval of the next save; `file` holds the newest state."""
        self._last_step, self._last_time, self.newest = step, time.monotonic(), file

    def save(self, info: CheckpointInfo, state: Any) -> None:
        """Take a snapshot now and write it in the background.

        Raises:
            OSError: neither the previous checkpoint nor this one can be written.
            Superseded: a newer attempt owns the directory.
        """
        start = time.monotonic()
        again = False
        try:
            self.wait()
        except OSError:
            again = True
        taken = checkpoint.snapshot(state)
        self.begin(info.step, info.name)
        self._under_way = self._thread.submit(self._write, info, taken, time.monotonic() - start)
        if again:
            self.wait()

    def wait(self) -> None:
        """Wait until the running write has finished.

        Raises:
            OSError: the checkpoint could not be written.
            Superseded: a newer attempt owns the directory.
        """
        if self._under_way:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def _failed(self) -> bool:
        save = self._under_way
        return save is not None and save.done() and save.exception() is not None

    def _write(self, info: CheckpointInfo, taken: Snapshot, held_up: float) -> None:
        start = time.monotonic()
        self._may_write()
        checkpoint.save(self._folder, info, taken)
        checkpoint.prune(self._folder, self._settings.keep)
        self._cost = held_up + time.monotonic() - start
        self._saved(info, self._cost)

    def automatic_interval(self) -> float:
        """Return the optimal interval in seconds: sqrt(2 · cost · time between failures).

        The cost includes the writing, which takes cores from a training on CPUs. Source: J. W.
        Young, "A first order approximation to the optimum checkpoint interval", CACM 1974.
        """
        if self._cost is None:
            return FIRST
        between = 3600 * self._settings.interruption_hours
        return max(math.sqrt(2 * self._cost * between), self._cost / SHARE)
