"""The records of runs and stages: one reader and one writer for each kind, by the name of its file.

A reader is strict: what it returns fits `schemas`, and a damaged file is named with its cure. Files
that hold something else, or that are shown as they are, are read with `rundir.read_json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pipeline.records import rundir
from pipeline.records.schemas import Event, Record

R = TypeVar("R", bound=Record)


def read(kind: type[R], directory: Path) -> R:
    """Return the record that a directory holds.

    Raises:
        FileNotFoundError: it holds none.
        UserError: it is damaged.
    """
    path = directory / kind.FILE
    parse = rundir.parse_yaml if path.suffix == ".yaml" else rundir.parse_json
    _, record = parse(path)
    assert isinstance(record, kind)
    return record


def write(record: Record, directory: Path) -> None:
    """Write a record, atomically; what was not set is left out."""
    rundir.write_json(directory / record.FILE, record.values())


def rows(kind: type[R], directory: Path) -> Iterator[R]:
    """Yield the rows of a kind, oldest first; a last line cut off by a kill is left out.

    Raises:
        UserError: another line is damaged.
    """
    for _, record in rundir.parse_lines(directory / kind.FILE):
        assert isinstance(record, kind)
        yield record


def note(record: Record, directory: Path) -> None:
    """Append a row in a single write, so that lines of two writers never mix."""
    rundir.append_line(directory / record.FILE, record.values())


def events(directory: Path) -> list[Event]:
    """Return what the attempts at a stage noted; a supervisor's notes in the same file are not.

    Raises:
        UserError: a line is damaged.
    """
    return [row for row in rows(Event, directory) if row.attempt]
