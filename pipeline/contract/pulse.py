"""Send and watch heartbeats: each process of a stage counts in shared memory, its parent watches.

A timeout by the clock alone is not enough: when a stopped process (SIGSTOP, a suspended SLURM job)
continues, the whole pause has passed at once. The parent therefore counts only time in which
neither it nor any of the processes was stopped. It detects a hang whatever a process is stuck in.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from collections.abc import Mapping

from pipeline.records.attempt import stopped

RENDEZVOUS = "PIPELINE_RENDEZVOUS"  # environment variable: URL where the processes meet
PULSE = "PIPELINE_PULSE"  # environment variable: descriptor of the shared memory
SHOW = signal.SIGUSR1  # signal on which a process writes its stacks; see `contract.world`
SLOT = struct.Struct("=qd")  # heartbeats so far; seconds until the next, 0 for no timeout
AWAKE = 1.0  # longest time between two checks, in seconds, unless the parent was stopped


class Watch:
    """The heartbeats of some processes, as their parent sees them."""

    def __init__(self, count: int) -> None:
        self.file = os.memfd_create("pulse")
        os.ftruncate(self.file, count * SLOT.size)
        self._memory = mmap.mmap(self.file, count * SLOT.size)
        self._words = [0] * count
        self._silent = [0.0] * count
        self._looked = time.monotonic()

    def hanging(self, pids: Mapping[int, int]) -> dict[int, float]:
        """Return the running processes whose heartbeat is overdue, with their silence in s.

        Args:
            pids: process ids, by the number of the process on this node.
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
    """Send a heartbeat to the parent, if it watches.

    Args:
        patience: longest time to the next heartbeat, in seconds; 0 for no timeout.
    """
    if PULSE not in os.environ:
        return
    offset = int(os.environ["LOCAL_RANK"]) * SLOT.size
    with mmap.mmap(int(os.environ[PULSE]), 0) as memory:
        words, _ = SLOT.unpack_from(memory, offset)
        SLOT.pack_into(memory, offset, words + 1, patience)


def watched(parent: int) -> bool:
    """Whether the original parent of this process still lives and watches it."""
    return PULSE in os.environ and os.getppid() == parent
