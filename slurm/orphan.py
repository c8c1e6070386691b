"""Decide for an orphaned supervisor, whose batch script was killed.

If the batch script of a job is killed, SLURM ends the job as failed, and no EXIT trap decides what
comes next. SLURM signals the job step and leaves it KillWait seconds. In this time the supervisor
of the first node lets the command save, and then calls `slurm.requeue` itself. SLURM accepts a
requeue of a job that it is ending, and the jobs that depend on it keep waiting.

If SLURM ends a job while srun starts its step, the signal comes before there is a process to
signal. The supervisor then finds no batch script, and does not start the command, which could only
be killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from slurm import scheduler
from slurm.entry import SUSPENDED
from slurm.scheduler import Unreachable

REPORTED = 60.0  # seconds within which SLURM learns that a batch script was killed
POLL = 0.5  # seconds between two queries


class Script:
    """The batch script of an attempt, seen from its first node.

    In a container, the script's process may be invisible; then only SLURM can report its end.

    Args:
        mark: the mark of the attempt, which ends with the process id of the script.
        job: the job id.
    """

    def __init__(self, mark: str, job: str) -> None:
        self._process = Path("/proc", mark.rpartition("-")[2] or "none")
        self._job = job
        self._visible = self._process.exists()

    def over(self) -> bool:
        """Whether SLURM ended the attempt while it was starting, so no further signal will come."""
        if self._visible:
            return False
        try:
            entry = scheduler.patient(lambda: scheduler.find(self._job), REPORTED)
        except Unreachable:  # do not wait longer, because the job holds its nodes
            return False
        return entry is None or entry.state not in ("RUNNING", *SUSPENDED)

    @property
    def ended(self) -> bool:
        """Whether the script has ended while this supervisor still runs."""
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
    """Run `slurm.requeue`, which the batch script can no longer do."""
    subprocess.run([sys.executable, "-m", "slurm.requeue", folder], check=False)
