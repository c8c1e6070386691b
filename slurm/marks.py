"""How a job in the queue is known to be the one that is on record.

Its id alone does not tell: a cluster that was set up anew counts from 1 again. So a mark, drawn for
each call of sbatch, is the comment of its jobs. Where that is the user's or the site's, which may
have a plugin that writes it, the mark is at the end of their names. Where that is written as well,
the record holds when SLURM says that they were submitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from slurm import scheduler
from slurm.records import Submission
from slurm.scheduler import Entry, Refused

COMMENT, NAME = "comment", "name"


def named(name: str, mark: str) -> str:
    """Return a job's name with a mark in it."""
    return f"{name}.{mark}"


def kept(entry: Entry, mark: str) -> list[str]:
    """Return where a job bears a mark."""
    found = {COMMENT: entry.comment, NAME: entry.name.rpartition(".")[2]}
    return [where for where, text in found.items() if text == mark]


def known(entry: Entry, row: Submission) -> bool:
    """Whether a job is the one that a record is of."""
    if kept(entry, row.token):
        return True
    if row.submitted is None or entry.submitted is None or entry.id != row.id:
        return False
    return entry.submitted.timestamp() >= row.submitted  # later if it was requeued


def read_back(rows: Mapping[Path, Submission]) -> list[str]:
    """Return where jobs bear their mark, as SLURM has the first of them.

    If nowhere, it is noted when they were submitted.

    Args:
        rows: what is on record of jobs that were submitted in one call, by their directories.

    Raises:
        Refused: SLURM does not know them, or would not requeue them.
        Unreachable: it does not answer.
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
