"""Find the queued jobs that belong to a directory, by its records.

This module also locks launches against each other, and waits for jobs that are ending.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from slurm import marks, scheduler
from slurm.entry import TAKEN, Entry
from slurm.job import Job
from slurm.records import Submission
from slurm.scheduler import Refused, Unreachable

LOCK = ".lock"
BACK = 60.0  # seconds within which a controller, or its backup, answers again
LEAVE = 120.0  # seconds within which a job that SLURM is ending leaves the queue


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock under which launches submit and cancel; wait for it first."""
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def settled(jobs: Sequence[Job]) -> dict[str, Entry]:
    """Return the queue once none of these jobs is ending.

    A job that is ending may still save or be requeued. Jobs that can do no work are cancelled.

    Raises:
        Refused: SLURM does not end a job in time.
    """
    until = time.monotonic() + LEAVE
    printed = False
    while True:
        queue = scheduler.user_jobs() | of_others(job.directory for job in jobs)
        vain = _in_vain(jobs, queue)
        scheduler.cancel(vain)
        found = [entry for job in jobs for entry, _ in queued(job.directory, queue)]
        leaving = [e.id for e in found if e.state == "COMPLETING" or e.id in vain]
        if not leaving:
            return queue
        if time.monotonic() > until:
            raise Refused(f"SLURM does not end job {leaving[0]}; look at squeue")
        if not printed:
            print(f"waiting for SLURM to end job {leaving[0]}")
        printed = True
        time.sleep(1)


def _in_vain(jobs: Sequence[Job], queue: dict[str, Entry]) -> list[str]:
    """Return the ids of jobs that can do no work.

    These are pending successors of jobs that need none, running successors that are about to
    refuse, and pending dependents of unfinished jobs that are not, or will not stay, queued.
    """
    found: list[str] = []
    lost: set[Path] = set()
    for job in jobs:
        entries = queued(job.directory, queue)
        for entry, first in entries:
            useless = first is not None and _needs_no_successor(first, queue)
            if entry.state == "PENDING" and (useless or lost.intersection(job.after)):
                found.append(entry.id)
        if not job.finished.exists():
            working = [(e.id, first) for e, first in entries if e.state == "RUNNING" and first]
            found += [id for id, first in working if _refuses(first, queue)]
        if not job.finished.exists() and all(entry.id in found for entry, _ in entries):
            lost.add(job.directory)
    return found


def _refuses(first: str, queue: dict[str, Entry]) -> bool:
    """Whether a running successor is about to refuse, because its predecessor was not preempted.

    If SLURM no longer knows the predecessor, the successor has checked before, and is working.
    """
    alive = first in queue and queue[first].active
    return not alive and scheduler.end(first) not in (None, *TAKEN)


def _needs_no_successor(first: str, queue: dict[str, Entry]) -> bool:
    alive = first in queue and queue[first].active
    return not alive and scheduler.end(first) not in TAKEN


def of_others(directories: Iterable[Path]) -> dict[str, Entry]:
    """Return the jobs of other users that work on directories of a root they share with us.

    Raises:
        Unreachable: the controller does not answer.
    """
    ids = []
    for directory in directories:
        with suppress(OSError):  # the status of the stage reports the error
            ids += [row.id for row in submitted(directory)[-1:] if not row.ours]
    return scheduler.known(ids)


def queued(directory: Path, queue: dict[str, Entry]) -> list[tuple[Entry, str | None]]:
    """Return the queued jobs of a directory, each with the id of the job that it succeeds."""
    records = Submission.read(directory)
    known = [(row.id, row) for row in submitted(directory)]
    if records and records[-1].event == "intent":  # the launcher died before it recorded the id
        last = records[-1]
        known += [(id, last) for id in queue if int(id.partition("_")[2] or 0) == last.index]
    found = {
        id: (queue[id], row.successor_of)
        for id, row in known
        if id in queue and queue[id].active and marks.known(queue[id], row)
    }
    return list(found.values())


def submitted(directory: Path) -> list[Submission]:
    """Return the submissions of a directory, oldest first."""
    found = Submission.read(directory)
    return [row for row in found if row.event == "submitted" and row.id and row.token]


def active(directory: Path, queue: dict[str, Entry]) -> Entry | None:
    """Return the queued job that works on a directory or will do so next."""
    found = queued(directory, queue)
    ids = {entry.id for entry, _ in found}
    return next((entry for entry, first in found if first not in ids), None)


def forgotten(given: Iterable[tuple[Job, str]]) -> list[str]:
    """Return the ids that SLURM does not know although their jobs have not ended.

    An id that belongs to another job by now counts as unknown: SLURM continues counting from the
    last id that it remembers.

    Args:
        given: jobs, each with the id under which it was submitted.

    Raises:
        Unreachable: the controller does not answer in time.
    """
    queue = scheduler.patient(scheduler.user_jobs, BACK)
    found = []
    for job, id in given:
        rows = [row for row in submitted(job.directory) if row.id == id]
        known = id in queue and any(marks.known(queue[id], row) for row in rows)
        if not known and not job.finished.exists() and (id in queue or not _ended(id)):
            found.append(id)
    return found


def _ended(id: str) -> bool:
    """Whether accounting knows the end of a job that has left the queue."""
    try:
        return scheduler.end(id) is not None
    except Unreachable:
        return False
