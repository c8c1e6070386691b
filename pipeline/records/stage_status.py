"""Compute a stage's status from its files and the SLURM queue. Status is never stored.

Files come first: a stage with a result is done, whatever SLURM reports about its job. The queue
comes second. A stage that is neither done nor in the queue has ended, and its last events say how.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config.base import STAGE_NAMES
from pipeline.display.errors import UserError, from_os_error, unreadable
from pipeline.records import attempt, endings, rundir, schemas, store
from pipeline.records.lost import seconds
from pipeline.records.schemas import Event, Progress, Result
from pipeline.records.spent import eta, gpu_hours
from slurm import marks, scheduler
from slurm.entry import SUSPENDED, Entry
from slurm.queue import active, of_others, submitted
from slurm.records import CANCELLED, Submission

State = Literal[
    "done", "running", "stalled?", "suspended", "stopping", "queued", "waiting", "requeued", "held",
    "cancelled", "failed", "stopped", "not started", "unknown", "damaged",
]  # fmt: skip
AT_WORK: set[State] = {"running", "stalled?", "suspended", "stopping"}
UNDER_WAY: set[State] = AT_WORK | {"queued", "waiting", "requeued", "held", "unknown"}
OLD = 180.0  # a running stage without progress for so many seconds may be stalled
UNSEEN = "or stopped, by Ctrl-Z or SIGSTOP: /proc does not show its process"


@dataclass(kw_only=True)
class Standing:
    """The status of one stage of one run.

    Args:
        why: what the stage waits for, how it ended, or a summary of its result.
        job: the id of its job, if the job is in the queue.
        attempt: the number of its newest attempt; 0 before the first.
        done, total: its progress, in a unit of its own.
        eta: seconds to its end; None if unknown.
        lost: seconds lost to interruptions; see `records.lost`.
        gpu_hours: GPU-hours of all attempts; only on a cluster.
    """

    stage: str
    state: State
    why: str = ""
    job: str | None = None
    attempt: int = 0
    done: int = 0
    total: int = 0
    text: str = ""
    eta: float | None = None
    lost: float = 0.0
    gpu_hours: float = 0.0
    directory: str = field(default="", repr=False)


def of(
    stage: str, directory: Path, queue: dict[str, Entry] | None, names: dict[str, str]
) -> Standing:
    """Return the status of a stage.

    Args:
        stage: the name of the stage.
        directory: the directory of the stage.
        queue: this user's jobs, by id; None if SLURM does not answer.
        names: names of jobs that other jobs may wait for, by id.
    """
    try:
        return _of(stage, directory, queue, names)
    except UserError as error:
        why = str(error)
    except PermissionError as error:
        why = str(unreadable(Path(error.filename or directory), error))
    except OSError as error:
        why = str(from_os_error(error, directory))
    return Standing(stage=stage, state="damaged", why=why, directory=str(directory))


def _of(
    stage: str, directory: Path, queue: dict[str, Entry] | None, names: dict[str, str]
) -> Standing:
    events = _checked(directory)
    state, why, entry = _state(directory, events, queue, names)
    progress = store.progress(directory) or Progress(done=0, total=0, text="", time=0.0)
    standing = Standing(
        stage=stage,
        state=state,
        why=why,
        job=entry.id if entry else None,
        attempt=attempt.last(directory).attempt,
        done=progress.done,
        total=progress.total,
        text=progress.text,
        lost=seconds(events, {row.id for row in submitted(directory) if row.successor_of}),
        gpu_hours=gpu_hours(events),
        directory=str(directory),
    )
    if state == "running":
        age = time.time() - progress.time
        if progress.time and age > OLD:
            standing.state, standing.why = "stalled?", f"no progress for {age:.0f} s"
        standing.eta = eta(events, progress)
    return standing


def _checked(directory: Path) -> list[Event]:
    """Return the events of a stage.

    Raises:
        UserError: its events, its submissions, or its result are damaged.
    """
    if rundir.there(directory / rundir.RESULT):
        store.read(Result, directory)
    for _ in store.rows(schemas.Submission, directory):
        pass
    return list(store.rows(Event, directory))


def _state(
    directory: Path,
    events: list[Event],
    queue: dict[str, Entry] | None,
    names: dict[str, str],
) -> tuple[State, str, Entry | None]:
    entry = active(directory, queue or {})
    if (directory / rundir.RESULT).exists():
        lingers = entry is not None and entry.state == "RUNNING"
        return "done", "SLURM still ends its job" if lingers else "", entry
    if entry:
        return *_in_queue(entry, names), entry
    if _runs_here(directory):
        if (directory / CANCELLED).exists():
            return "stopping", "asked to save and stop", None
        return *_at_work_here(directory), None
    if (directory / CANCELLED).exists():
        return "cancelled", "launch again to go on", None
    jobs = submitted(directory)
    if jobs and queue is None and not endings.final(events, jobs[-1]):
        word = f"; its last event: {events[-1].event}" if events else ""
        return "unknown", f"SLURM does not report job {jobs[-1].id}{word}", None
    job = _last_job(jobs, queue or {})
    if events:
        return *(endings.silent(events, job, directory) or endings.ended(events, job)), None
    if job and job.state == "CANCELLED":
        return "cancelled", "what it waited for did not finish; launch again to go on", None
    if job:
        return *endings.unbegun(job, directory), None
    if jobs:
        gone = f"job {jobs[-1].id} left SLURM's queue before it began; launch again to go on"
        return "stopped", gone, None
    return "not started", "", None


def _at_work_here(directory: Path) -> tuple[State, str]:
    owner = attempt.last(directory)
    stopped = owner.host == socket.gethostname() and attempt.stopped(owner.pid)
    if stopped:
        return "suspended", f"it was stopped; it goes on with `fg`, or kill -CONT {owner.pid}"
    return "running", UNSEEN if stopped is None else ""


def _in_queue(entry: Entry, names: dict[str, str]) -> tuple[State, str]:
    if entry.state == "RUNNING":
        return "running", f"on {entry.nodes}"
    if entry.state in SUSPENDED:
        return "suspended", f"by SLURM, on {entry.nodes}; it continues there when SLURM resumes it"
    if entry.held:
        return "held", f"{entry.reason}; to release it: scontrol release {entry.id}"
    if entry.state == "COMPLETING":
        return "stopping", "SLURM ends its job"
    start = f", expected {entry.start:%d %b %H:%M}" if entry.start else ""
    if entry.reason == "Dependency":
        before = [names.get(id, f"job {id}") for id in entry.after]
        return "waiting", f"for {', '.join(before)}" if before else "for what comes before"
    if entry.reason == "BeginTime":
        at = f" at {entry.start:%H:%M:%S}" if entry.start else ""
        return "requeued", f"may start again{at}"
    if entry.restarts:
        return "requeued", f"{entry.reason}{start}"
    return "queued", f"{entry.reason}{start}"


def _last_job(jobs: list[Submission], queue: dict[str, Entry]) -> Entry | None:
    """Return the last submitted job of a stage, if SLURM still knows it."""
    entry = queue.get(jobs[-1].id) if jobs else None
    return entry if entry and marks.known(entry, jobs[-1]) else None


def _runs_here(directory: Path) -> bool:
    """Whether an attempt without a SLURM job runs; on another host, recent progress shows it."""
    owner = attempt.last(directory)
    if not owner.attempt or owner.job:
        return False
    if owner.host != socket.gethostname():
        progress = store.progress(directory)
        recent = progress is not None and time.time() - progress.time < OLD
        return recent and attempt.ending(directory, owner.attempt) is None
    return attempt.alive(directory)


def names_of(
    runs: Iterable[tuple[str, dict[str, Path]]], queue: dict[str, Entry]
) -> dict[str, str]:
    """Return the stage and run of each queued job, by job id."""
    found = {}
    for run, stages in runs:
        for stage, directory in stages.items():
            with suppress(OSError):  # `of` reports the error
                for row in submitted(directory):
                    if row.id in queue and marks.known(queue[row.id], row):
                        found[row.id] = f"{stage} of {run}"
    return found


def queued(directories: Iterable[Path] = ()) -> tuple[dict[str, Entry] | None, str]:
    """Return this user's jobs, and those of other users that work on the directories, by id.

    Returns None and a note if SLURM does not answer.
    """
    try:
        return scheduler.user_jobs() | of_others(directories), ""
    except scheduler.Refused as error:
        here = "no squeue" not in str(error)
        return None, f"SLURM says: {error}" if here else ""
    except scheduler.Unreachable as error:
        return None, f"SLURM does not answer ({error}); what follows comes from files alone"


def overall(stages: list[Standing]) -> str:
    """Return the state of a run: the most important state of its stages that are not done.

    A run is `partly done` if some stages were never requested and the others are done.
    """
    states = [stage.state for stage in stages if stage.state != "done"]
    for state in (
        "damaged", "failed", "cancelled", "held", "stalled?", "unknown", "suspended", "running",
        "stopping", "requeued", "queued",
    ):  # fmt: skip
        if state in states:
            return state
    if states:
        return states[0]
    return "done" if {stage.stage for stage in stages} >= set(STAGE_NAMES) else "partly done"
