"""Write and read the records of a job in its directory: one writer and one reader per kind of row.

    jobs.jsonl      submissions: the intent first, then the id that SLURM gave
    events.jsonl    events of supervision: began, joined, signal, ended, failed, requeued, refused,
                    gave_up
    progress.json   written by the command: its progress, and where a repetition would begin
    CANCELLED       the job was cancelled on purpose: nothing may start or requeue it

A reader skips incomplete lines and lines of other kinds: the command may record events of its own
in the same file, and nobody is present to repair a file when a job's future is decided.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from slurm import files

JOBS = "jobs.jsonl"
EVENTS = "events.jsonl"
PROGRESS = "progress.json"
CANCELLED = "CANCELLED"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a JSON-lines file; fields at their default are not written."""

    FILE: ClassVar[str]

    time: float | int = field(default_factory=time.time)
    event: str

    def note(self, directory: Path) -> None:
        """Append this row to the records of a job, in one write that never mixes with another.

        Raises:
            OSError: the row cannot be written; the file is unchanged.
        """
        given = [(it, getattr(self, it.name)) for it in fields(self)]
        row = {it.name: value for it, value in given if value != it.default}
        files.append(directory / self.FILE, json.dumps(row) + "\n")

    @classmethod
    def read(cls, directory: Path) -> list[Self]:
        """Return the rows of this kind in the records of a job, oldest first.

        Raises:
            OSError: the file exists but is not readable, or is not a regular file.
        """
        return [cls(**known) for row in rows(directory / cls.FILE) if (known := cls._known(row))]

    @classmethod
    def _known(cls, row: dict[str, object]) -> dict[str, Any] | None:
        """Return the fields of this kind in a line; None if the line is of another kind."""
        kinds = _kinds(cls)  # type: ignore[arg-type]  # mypy takes a dataclass for unhashable
        known = {name: value for name, value in row.items() if name in kinds}
        whole = known.keys() >= {it.name for it in fields(cls) if it.default is MISSING}
        fits = all(isinstance(value, kinds[name]) for name, value in known.items())
        return known if whole and fits else None


@dataclass(frozen=True, kw_only=True)
class Event(Row):
    """An event that the supervisor recorded in one attempt at a job.

    Args:
        job: the id that SLURM gave.
        restart: number of requeues before this attempt.
        mark: the mark that the attempt's batch script drew; "" in older rows.
        nodes, gpus: of `began`: the names of the nodes, and the GPUs on all of them.
        signal: of `signal`: the name of the signal.
        node: of `joined`, `ended`: the number of the node within the job.
        code: of `ended`: the command's exit code.
        saved: of `ended`, `requeued`, `gave_up`: the point where a repetition begins.
        why: of `requeued`, `gave_up`: what ended the attempt; of `ended`: why the command was not
            started; of `refused`: why SLURM did not requeue the job; of `ended_by_slurm`: SLURM's
            state of the job.
        message: of `failed`: the error.
    """

    FILE = EVENTS

    job: str
    restart: int
    mark: str = ""
    nodes: list[str] | None = None
    gpus: int | None = None
    signal: str | None = None
    node: int | None = None
    code: int | None = None
    why: str | None = None
    saved: int | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class Submission(Row):
    """A step of a submission: intent, submitted, or attached to a job found in the queue.

    Args:
        id: of `submitted`, `attached`: job id.
        token: of `intent`, `submitted`: mark that identifies the job; see `slurm.marks`.
        index: of `intent`: index of the job in its array.
        runs: of `submitted`, `attached`: the runs that want the job.
        successor_of: of `submitted`: id of the job that it succeeds.
        submitted: of `submitted`: submit time by SLURM; only for a job that carries no mark.
        user: of `submitted`: uid of the owner of the job.
    """

    FILE = JOBS

    id: str = ""
    token: str = ""
    index: int | None = None
    runs: list[str] | None = None
    successor_of: str | None = None
    submitted: float | None = None
    user: int | None = None

    @property
    def ours(self) -> bool:
        """Whether the job is this user's; older rows do not record the user, and count as ours."""
        return self.user in (None, os.geteuid())


@cache
def _kinds(row: type) -> dict[str, tuple[type, ...]]:
    """Return the types that each field of a row may have."""
    hints, found = get_type_hints(row), {}
    for name in (it.name for it in fields(row)):
        hint = hints[name]
        options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        found[name] = tuple(get_origin(option) or option for option in options)
    return found


def rows(path: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a JSON-lines file; skip incomplete lines."""
    try:
        text = files.read(path).decode(errors="replace")
    except FileNotFoundError:
        return
    for line in text.split("\n"):
        try:
            row = json.loads(line.lstrip("\0"))  # a power cut can leave zeros
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def saved(directory: Path) -> int:
    """Return the point from which a repetition would continue; 0 if nothing is saved."""
    try:
        return int(json.loads(files.read(directory / PROGRESS))["saved"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0
