"""Whether the processes of a stage get on: each counts in memory that its parent looks at.

A clock alone cannot tell. To a process that was stopped (SIGSTOP, a job that SLURM suspends) all of
that time passes at once when it goes on. So the parent counts, and only the time in which neither
it nor any of the processes was stopped. It works whatever a process is stuck in.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from collections.abc import Mapping
from pathlib import Path

PULSE = "PIPELINE_PULSE"  # tells a process the descriptor of that memory
SHOW = signal.SIGUSR1  # has a process write its stacks; see training.distributed
SLOT = struct.Struct("=qd")  # words so far; the seconds until the next, 0 if nobody waits for it
AWAKE = 1.0  # seconds between two looks, at most, if the parent was not stopped itself


class Watch:
    """What the parent of some processes sees of them."""

    def __init__(self, count: int) -> None:
        self.file = os.memfd_create("pulse")
        os.ftruncate(self.file, count * SLOT.size)
        self._memory = mmap.mmap(self.file, count * SLOT.size)
        self._words = [0] * count
        self._silent = [0.0] * count
        self._looked = time.monotonic()

    def hanging(self, pids: Mapping[int, int]) -> dict[int, float]:
        """Return who of those still running is silent for too long, and how many seconds that is.

        Args:
            pids: by the number of the process on this node.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, AWAKE), now
        if any(map(stopped, pids.values())):
            return {}
        found = {}
        for number in pids:
            words, patience = SLOT.unpack_from(self._memory, number * SLOT.size)
            same = words == self._words[number]
            self._silent[number] = self._silent[number] + passed if same else 0.0
            self._words[number] = words
            if 0 < patience <= self._silent[number]:
                found[number] = patience
        return found


def beat(patience: float) -> None:
    """Tell the parent, if it watches, that this process gets on.

    Args:
        patience: seconds in which it will again, at most; 0 if nobody should wait for that.
    """
    if PULSE not in os.environ:
        return
    place = int(os.environ["LOCAL_RANK"]) * SLOT.size
    with mmap.mmap(int(os.environ[PULSE]), 0) as memory:
        words, _ = SLOT.unpack_from(memory, place)
        SLOT.pack_into(memory, place, words + 1, patience)


def watched(parent: int) -> bool:
    """Whether the process that was our parent when we began still is, and watches."""
    return PULSE in os.environ and os.getppid() == parent


def stopped(pid: int) -> bool:
    """Whether a process is stopped: by Ctrl-Z, SIGSTOP, or as its job is suspended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    except OSError:
        return False  # it has ended
