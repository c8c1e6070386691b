"""A job as SLURM's controller reports it, and what its states mean."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from datetime import datetime

KILLED = "KILLED"  # our word for FAILED by a killed batch script, which could not decide anything
TAKEN = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", KILLED)  # final states of an interrupted job
HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
SUSPENDED = ("SUSPENDED", "STOPPED")  # the processes are stopped in place
ENDED = (*TAKEN, "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "REVOKED",
         "TIMEOUT")  # fmt: skip

_HELD = re.compile("[Hh]eld|JobHold")  # JobHeldUser, launch failed requeued held, …


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job, as reported by the controller.

    Args:
        id: `12`, or `12_3` for an element of an array.
        state: RUNNING, PENDING, COMPLETING, …
        reason: why the job is pending.
        restarts: number of requeues.
        start: start time, actual or expected.
        end: end time, actual or expected: by the time limit, later if the job was suspended,
            earlier if it is being preempted; None without limit.
        nodes: names of the job's nodes.
        after: ids of the jobs that it waits for.
        comment: the comment, set at submission or by the site; empty without one.
        submitted: submit time.
        limit: time limit, minutes; None without a limit.
        requeues: whether SLURM may requeue the job.
        signal: the signal that ended the batch script; 0 if none did.
    """

    id: str
    name: str
    state: str
    reason: str
    restarts: int
    start: datetime | None
    end: datetime | None
    nodes: str
    after: tuple[str, ...]
    comment: str
    submitted: datetime | None = None
    limit: float | None = None
    requeues: bool = True
    signal: int = 0

    @property
    def active(self) -> bool:
        """Whether the job is pending, running or completing, so no other job may do its work."""
        return self.state not in ENDED

    @property
    def orphaned(self) -> bool:
        """Whether SLURM is ending the job because its batch script was killed."""
        return self.state == "COMPLETING" and self.signal == signal.SIGKILL

    @property
    def held(self) -> bool:
        """Whether the job is held until a release: by a user, or after a failed prolog."""
        return self.state in HELD or (self.state == "PENDING" and bool(_HELD.search(self.reason)))
