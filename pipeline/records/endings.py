"""Find out how a stage without a result ended: from its events, and from SLURM if it knows."""

from __future__ import annotations

from pathlib import Path
from signal import SIGKILL
from typing import Literal

from pipeline.records.schemas import Event
from slurm import place
from slurm.entry import Entry
from slurm.job import REFUSED
from slurm.records import Submission

Ending = tuple[Literal["cancelled", "failed", "stopped"], str]  # state and reason
ENDED = {
    "CANCELLED": "its job was cancelled",
    "TIMEOUT": "its job met the time limit before it could save",
    "OUT_OF_MEMORY": "its job ran out of memory; ask for more with cluster.memory",
    "NODE_FAIL": "its node failed and the job was not requeued",
    "PREEMPTED": "its job was preempted and not requeued",
}

KILLED = "its batch script was killed; launch again to go on"
UNRECORDED = "nothing recorded how it ended: its batch script or its node was lost; launch again"
SPEECHLESS = ("FAILED", "BOOT_FAIL")  # SLURM's states of a job that could not be started


def ended(events: list[Event], job: Entry | None) -> Ending:
    """Return state and reason of a stage that has no result and does not run."""
    last = events[-1]
    if last.event == "gave_up":
        failed = [row.message for row in events if row.event == "failed"]
        more = f": {failed[-1]}" if failed else ""
        return "failed", f"given up after attempts without progress ({last.why}){more}"
    if last.event in ("ended", "refused") and last.why:
        return "stopped", last.why
    for row in reversed(events):
        if row.event == "failed":
            return "failed", row.message
        if row.event in ("stopped", "resumed", "started"):
            break
    state = job.state if job else last.why if last.event == "ended_by_slurm" else ""
    if state in ENDED:
        return "cancelled" if state == "CANCELLED" else "failed", ENDED[state]
    if job and job.signal == SIGKILL:
        return "failed", KILLED
    supervised = [row.event for row in events if row.event in ("began", "ended")]
    return "stopped", UNRECORDED if supervised[-1:] == ["began"] else "launch again to go on"


def silent(events: list[Event], job: Entry | None, directory: Path) -> Ending | None:
    """Return state and reason if SLURM started the last job and the job recorded nothing."""
    if job is None or job.state not in SPEECHLESS or job.start is None:
        return None
    silent = job.start.timestamp() > events[-1].time + 1  # SLURM reports whole seconds
    return unbegun(job, directory) if silent else None


def unbegun(job: Entry, directory: Path) -> Ending:
    """Return state and reason of a stage whose job has ended and recorded nothing."""
    if job.signal == SIGKILL:
        return "failed", KILLED
    if job.nodes:
        return "failed", place.blind(job.nodes, directory)
    return "stopped", "its job ended before it began"


def final(events: list[Event], job: Submission) -> bool:
    """Whether the events of a stage tell how its last job ended, so SLURM need not be asked."""
    if not events or events[-1].time < job.time:
        return False
    last = events[-1]
    return last.event in ("gave_up", "refused") or (last.event, last.code) == ("ended", REFUSED)
