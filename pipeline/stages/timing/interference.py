"""Detect other use of the cores during a measurement, from the counters of the kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

IDLE, IOWAIT, STEAL = 3, 4, 7  # columns of /proc/stat
COUNTED = 8  # later columns are included in earlier ones


@dataclass
class Neighbours:
    """Shares of the time of this process's cores, between 0 and 1, that others used.

    Args:
        others: share used by other processes.
        stolen: share taken by the host of a virtual machine.
    """

    others: float = 0.0
    stolen: float = 0.0
    seconds: float = 0.0  # measured time
    _begun: tuple[list[int], float, float] = field(
        default_factory=lambda: (_ticks(), _own_seconds(), time.monotonic()), repr=False
    )

    def update(self) -> None:
        """Update the shares, over the time since the beginning."""
        before, own, begun = self._begun
        after, self.seconds = _ticks(), time.monotonic() - begun
        if not before or not after:  # not Linux, or /proc/stat is not readable
            return
        spent = [b - a for a, b in zip(before, after, strict=True)]
        second = os.sysconf("SC_CLK_TCK")
        whole = len(os.sched_getaffinity(0)) * self.seconds
        busy = sum(spent) - spent[IDLE] - spent[IOWAIT] - spent[STEAL]
        self.others = max(0.0, (busy / second - (_own_seconds() - own)) / whole)
        self.stolen = spent[STEAL] / second / whole


@contextmanager
def watched() -> Iterator[Neighbours]:
    """Measure over the body of the `with` statement; the result is filled in at its end."""
    found = Neighbours()
    yield found
    found.update()


def _ticks() -> list[int]:
    """Return the counters of the cores of this process, by column, in clock ticks."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = [line.split()[1 : 1 + COUNTED] for line in lines if line.split()[0] in names]
    return [sum(int(value) for value in column) for column in zip(*rows, strict=True)]


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
