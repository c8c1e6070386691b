"""Decide what follows when a job's command has ended: finished, requeued, or given up.

This is the EXIT trap of every batch script. It runs outside the job step, which SLURM signals first
and may kill. It reads files and the job's state in SLURM, and requeues only if SLURM reports the
job as RUNNING and this is the current attempt, so a cancelled job never comes back.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

from slurm import files, scheduler, site
from slurm.entry import SUSPENDED, Entry
from slurm.job import DONE, REFUSED, STOPPED, Job
from slurm.place import blind
from slurm.records import Event
from slurm.sbatch import submitted_with
from slurm.supervise import Allocation

EARLY = 95  # seconds by which the time-limit signal may come early: 65 by SLURM, 30 for the start
POLL = 1.0  # seconds between two queries about a suspended job
END = 120.0  # seconds within which SLURM must end an attempt that it has requeued

MEMORY = re.compile(r"^(slurmstepd|srun).*(oom|out of memory|memory limit)", re.I | re.M)
ENDS = re.compile(r"^slurmstepd.* CANCELLED AT \S+(?: DUE TO ([A-Z ]+)[^*]*)? ?\*\*\*", re.M)
STATES = {
    None: "CANCELLED",
    "TIME LIMIT": "TIMEOUT",
    "PREEMPTION": "PREEMPTED",
    "NODE FAILURE": "NODE_FAIL",
}  # by the reason that slurmstepd prints
BEGINS = "Starting with JobEnvironment"  # part of submitit's first line of output
LAST = 65536  # last bytes of a log that are searched

ORPHANED = "its batch script was killed"
INTERRUPTED, TIME_LIMIT, CRASHED = "interrupted", "time limit", "crashed"


def decide(job: Job, here: Allocation, printed: str = "") -> int:
    """Requeue a job that is not finished, or return the exit code that ends it for good.

    Args:
        job: the job whose command has ended.
        here: the attempt that has ended.
        printed: the log of the attempt.
    """
    if job.finished.exists():
        return DONE
    if job.cancelled:
        return _end(f"{job.name} was cancelled")
    entry = _awake(here.id)
    alive = entry is not None and (entry.state == "RUNNING" or entry.orphaned)
    if entry is None or not alive or entry.restarts != here.restart:
        state = _ended_as(printed)
        if state and (entry is None or entry.restarts == here.restart):
            here.event("ended_by_slurm", why=state).note(job.directory)
        how = f" ({state})" if state else ""
        return _end(f"SLURM has ended this attempt of {job.name}{how}; it decides what comes next")
    own = here.own(job.directory)
    ended = [row.code for row in own if row.event == "ended"]
    if REFUSED in ended:
        reasons = [row.why for row in own if row.event == "ended" and row.why]
        reason = f"was not started: {reasons[0]}" if reasons else "refused its input; see its log"
        return _end(f"{job.name} {reason}", REFUSED)
    why = CRASHED if entry.orphaned else _why(job, ended, own, entry)
    saved = job.saved()
    if why == CRASHED and (message := ORPHANED if entry.orphaned else _cause(job, here, printed)):
        here.event("failed", message=message).note(job.directory)
    if why != INTERRUPTED and _vain(job, saved) >= job.retries:
        here.event("gave_up", why=why, saved=saved).note(job.directory)
        return _end(
            f"{job.name}: given up; {job.retries + 1} attempts in a row ended ({why}) without "
            f"getting further than {saved}. Its log says why; launch again to try again"
        )
    here.event("requeued", why=why, saved=saved).note(job.directory)
    return _requeue(job, here, entry.orphaned)


def _awake(id: str) -> Entry | None:
    """Return a job's entry once the job is neither suspended nor just resumed."""
    while (entry := scheduler.patient(lambda: scheduler.find(id))) is not None:
        if entry.state not in SUSPENDED:
            break
        time.sleep(POLL)
    return entry


def _why(job: Job, ended: list[int | None], own: list[Event], entry: Entry) -> str:
    """Return the reason why an attempt ended: a signal, the time limit, or a crash.

    A crash on one node makes SLURM signal the other nodes, where the command may still save. Only
    times of the same clock are compared: the first node's, or the controller's.
    """
    began = [row.time for row in own if row.event == "began"]
    signals = [row.time for row in own if row.event == "signal"]
    if set(ended) != {STOPPED} or not signals:
        return CRASHED
    if began and entry.start and entry.end and entry.limit:
        # the end that SLURM reports is later if the job was suspended, and soon if it is preempted
        limit = max(60 * entry.limit, (entry.end - entry.start).total_seconds())
        left = limit - (signals[0] - began[0])
        if left <= job.resources.signal_seconds + EARLY:
            return TIME_LIMIT
    return INTERRUPTED


def _cause(job: Job, here: Allocation, printed: str) -> str | None:
    """Return the cause of a crash, if it is known from outside the command; else None."""
    if MEMORY.search(printed):
        had = f"{job.resources.memory:g} GB" if job.resources.memory else "what the cluster gives"
        return f"SLURM ended it, because it needs more memory than {had}; set cluster.memory (GB)"
    if absent := here.absent(job.directory):
        return blind(",".join(absent), job.directory)
    return None


def _ended_as(printed: str) -> str | None:
    """Return the state in which SLURM ends the job, by what slurmstepd printed; None if unknown."""
    endings = ENDS.findall(printed)
    return STATES.get(endings[-1].strip() or None) if endings else None


def _vain(job: Job, saved: int) -> int:
    """Return how often the job was requeued from this save after a crash or at its time limit."""
    count = 0
    for row in reversed(Event.read(job.directory)):
        if row.event == "gave_up" or (row.event == "requeued" and (row.saved or 0) < saved):
            break
        count += row.event == "requeued" and row.why != INTERRUPTED
    return count


def _requeue(job: Job, here: Allocation, orphaned: bool) -> int:
    try:
        scheduler.patient(lambda: scheduler.requeue(here.id))
    except scheduler.Refused as error:
        entry = scheduler.patient(lambda: scheduler.find(here.id))
        if entry is None or entry.state == "RUNNING":
            why = f"job {here.id} may not be requeued ({error}); launch again to continue"
            here.event("refused", why=why).note(job.directory)
            return _end(why)
    if orphaned:  # SLURM waits for the processes of the job, this one included
        return DONE
    time.sleep(END)  # SLURM ends this process; exiting earlier would end the job instead
    return _end(f"job {here.id} was requeued, but SLURM did not end this attempt")


def _end(why: str, code: int = 1) -> int:
    print(why, flush=True)
    return _final(code)


def _final(code: int) -> int:
    """Return the exit code; another one if SLURM requeues or holds jobs that end with this code."""
    return site.final(code, scheduler.patient(site.config))


def main(folder: Path) -> int:
    """Find the job of this batch script and decide what follows."""
    job, _ = submitted_with(folder)
    try:
        return decide(job, Allocation.here(), _printed())
    except OSError as error:  # e.g. a full disk: unrecorded attempts would not be counted
        return _end(f"{job.name} is not requeued: {error}; make room and launch again")


def _printed() -> str:
    """Return the end of this attempt's output, which is in the file of our own output."""
    with suppress(OSError), files.opened(Path("/proc/self/fd/1")) as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - LAST))
        return log.read().decode(errors="replace").rpartition(BEGINS)[2]
    return ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
