"""A supervisor whose batch script is gone.

A job whose batch script is killed is ended by SLURM as failed, and no EXIT trap decides what comes
next. SLURM signals the job step and leaves it KillWait seconds. In these the supervisor of the
first node lets the command save, and then calls `slurm.requeue` itself: SLURM takes the requeue of
a job that it is ending, and the jobs that depend on it go on waiting.

A job that SLURM ends while srun starts its step gets its signal before there is anything to signal.
Its supervisor finds no batch script, and starts no command that could only be killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from slurm import scheduler
from slurm.scheduler import Unreachable

REPORTED = 60.0  # seconds in which SLURM learns that a batch script was killed
POLL = 0.5  # seconds


class Script:
    """The batch script of an attempt, seen from its first node.

    In a container its process may not be visible; then SLURM alone tells of its end.

    Args:
        mark: of the attempt; it ends with the number of the script's process.
        job: job id.
    """

    def __init__(self, mark: str, job: str) -> None:
        self._process = Path("/proc", mark.rpartition("-")[2] or "none")
        self._job = job
        self._visible = self._process.exists()

    def over(self) -> bool:
        """Whether SLURM ended the attempt while it was starting: no signal will come any more."""
        if self._visible:
            return False
        try:
            entry = scheduler.patient(lambda: scheduler.find(self._job), REPORTED)
        except Unreachable:  # the job holds its nodes meanwhile
            return False
        return entry is None or entry.state not in ("RUNNING", *scheduler.SUSPENDED)

    @property
    def ended(self) -> bool:
        """Whether the script has ended, though the supervisor has not."""
        return self._visible and not self._process.exists()

    def killed(self) -> bool:
        """Whether the script was killed; wait until SLURM knows of its end."""
        if self._process.exists():
            return False
        until = time.monotonic() + (REPORTED if self._visible else 0)
        while True:
            entry = scheduler.patient(lambda: scheduler.find(self._job))
            if entry is None or entry.state != "RUNNING" or time.monotonic() > until:
                return entry is not None and entry.orphaned
            time.sleep(POLL)


def requeue(folder: str) -> None:
    """Decide what comes next, in place of the batch script."""
    subprocess.run([sys.executable, "-m", "slurm.requeue", folder], check=False)
