"""After a job's command ended: it is finished, goes back into the queue, or is given up.

The EXIT trap of every batch script. It runs outside the step that SLURM signals first and that may
be killed, looks at files and at what SLURM says of the job, and never brings back what was
cancelled: only a job that is still RUNNING is requeued, by nobody but its present attempt.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from slurm import scheduler
from slurm.job import DONE, REFUSED, STOPPED, Job
from slurm.records import Event
from slurm.sbatch import submitted_with
from slurm.scheduler import Entry
from slurm.supervise import Allocation

EARLY = 65  # seconds by which SLURM may send the signal before a time limit too early
SKEW = 60.0  # seconds that the nodes' clocks may differ
POLL = 1.0  # seconds between two looks at a job that is suspended
END = 120.0  # seconds until SLURM must have ended a job that it has requeued

INTERRUPTED, TIME_LIMIT, CRASHED = "interrupted", "time limit", "crashed"


def decide(job: Job, here: Allocation) -> int:
    """Requeue a job that is not finished, or return the exit code that ends it for good."""
    if job.finished.exists():
        return DONE
    if job.cancelled:
        return _end(f"{job.name} was cancelled")
    entry = _awake(here.id)
    if entry is None or entry.state != "RUNNING" or entry.restarts != here.restart:
        return _end(f"SLURM has ended this attempt of {job.name}; it decides what comes next")
    own = _own(job, here, entry)
    ended = [row.code for row in own if row.event == "ended"]
    if REFUSED in ended:
        return _end(f"{job.name} refused its input; its log says what", REFUSED)
    why = _why(job, ended, own, entry)
    saved = job.saved()
    if why != INTERRUPTED and _vain(job, saved) >= job.retries:
        here.event("gave_up", why=why, saved=saved).note(job.directory)
        return _end(
            f"{job.name}: given up; {job.retries + 1} attempts in a row ended ({why}) without "
            f"getting further than {saved}. Its log says why; launch again to try again"
        )
    here.event("requeued", why=why, saved=saved).note(job.directory)
    return _requeue(here.id)


def _awake(id: str) -> Entry | None:
    """Return a job once it is not about to be stopped where it is, or just goes on again."""
    while (entry := scheduler.patient(lambda: scheduler.find(id))) is not None:
        if entry.state not in scheduler.SUSPENDED:
            break
        time.sleep(POLL)
    return entry


def _own(job: Job, here: Allocation, entry: Entry) -> list[Event]:
    """Return what was noted of this attempt; an older cluster may have had a job of the same id."""
    since = entry.start.timestamp() - SKEW if entry.start else 0.0
    return [
        row
        for row in Event.read(job.directory)
        if (row.job, row.restart) == (here.id, here.restart) and row.time >= since
    ]


def _why(job: Job, ended: list[int | None], own: list[Event], entry: Entry) -> str:
    """Return what ended an attempt: a signal in time or at the time limit, or else a crash.

    A crash on one node signals the others, where the command may still save and stop.
    """
    signals = [row.time for row in own if row.event == "signal"]
    if set(ended) != {STOPPED} or not signals:
        return CRASHED
    if entry.end is not None:
        left = entry.end.timestamp() - signals[0]
        if left <= job.resources.signal_seconds + EARLY:
            return TIME_LIMIT
    return INTERRUPTED


def _vain(job: Job, saved: int) -> int:
    """Return how many attempts in a row, before this one, ended and were no progress."""
    count = 0
    for row in reversed(Event.read(job.directory)):
        if row.event == "gave_up" or (row.event == "requeued" and (row.saved or 0) < saved):
            break
        count += row.event == "requeued" and row.why != INTERRUPTED
    return count


def _requeue(job: str) -> int:
    try:
        scheduler.patient(lambda: scheduler.requeue(job))
    except scheduler.Refused as error:
        entry = scheduler.patient(lambda: scheduler.find(job))
        if entry is None or entry.state == "RUNNING":
            return _end(f"job {job} may not be requeued ({error}); launch again to continue")
    time.sleep(END)  # SLURM ends us; to leave before it has would end the job instead
    return _end(f"job {job} was requeued, but SLURM did not end this attempt")


def _end(why: str, code: int = 1) -> int:
    print(why, flush=True)
    return code


def main(folder: Path) -> int:
    """Find the job this batch script belongs to, and decide."""
    job, _ = submitted_with(folder)
    return decide(job, Allocation.here())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
