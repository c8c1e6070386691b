"""Recognize a queued job as the one in our records.

The job id alone is not enough: a cluster that was set up again counts from 1. Each sbatch call
therefore draws a random mark and makes it the comment of its jobs. If the user sets the comment, or
a plugin of the site overwrites it, the mark is the end of the job name. If the site overwrites
names as well, the record holds the submit time that SLURM reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from slurm import scheduler
from slurm.entry import Entry
from slurm.records import Submission
from slurm.scheduler import Refused

COMMENT, NAME = "comment", "name"


def named(name: str, mark: str) -> str:
    """Return a job name that contains a mark."""
    return f"{name}.{mark}"


def kept(entry: Entry, mark: str) -> list[str]:
    """Return the fields in which a job carries a mark: its comment, its name, or none."""
    found = {COMMENT: entry.comment, NAME: entry.name.rpartition(".")[2]}
    return [where for where, text in found.items() if text == mark]


def known(entry: Entry, row: Submission) -> bool:
    """Whether a queued job is the one of a record."""
    if kept(entry, row.token):
        return True
    if row.submitted is None or entry.submitted is None or entry.id != row.id:
        return False
    return entry.submitted.timestamp() >= row.submitted  # a requeue makes the time later


def read_back(rows: Mapping[Path, Submission]) -> list[str]:
    """Return the fields in which SLURM kept the mark of these jobs, read back from the first job.

    If SLURM kept the mark nowhere, the submit time of the jobs is recorded.

    Args:
        rows: records of the jobs of one sbatch call, by directory.

    Raises:
        Refused: SLURM does not know the jobs, or does not allow requeueing them.
        Unreachable: SLURM does not answer.
    """
    row = next(iter(rows.values()))
    entry = scheduler.find(row.id)
    if entry is None:
        raise Refused(f"SLURM took job {row.id}, but does not know of it; look at squeue")
    if not entry.requeues:
        raise Refused(
            "this cluster lets no job be requeued (its jobs have Requeue=0), so interrupted work "
            "would not come back; ask its administrator, or choose another partition"
        )
    where = kept(entry, row.token)
    if not where and entry.submitted:
        for directory, each in rows.items():
            replace(each, submitted=entry.submitted.timestamp()).note(directory)
    return where
