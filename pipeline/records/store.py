"""Read and write the records of runs and stages; the name of its file decides the kind of a record.

Readers are strict: what they return fits `schemas`, and the error for a damaged file names the file
and its cure. Files without a schema, or that are only shown, are read with `rundir.read_json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pipeline.config.base import STAGE_NAMES
from pipeline.display.errors import UserError
from pipeline.display.outside import line
from pipeline.records import rundir
from pipeline.records.schemas import Event, Progress, Record, Result

R = TypeVar("R", bound=Record)


def read(kind: type[R], directory: Path) -> R:
    """Return the record of this kind in a directory.

    Raises:
        FileNotFoundError: the directory has no such file.
        UserError: the file is damaged, or is the result of another stage directory.
    """
    path = directory / kind.FILE
    parse = rundir.parse_yaml if path.suffix == ".yaml" else rundir.parse_json
    _, record = parse(path)
    assert isinstance(record, kind)
    if isinstance(record, Result):
        _check_place(record, path)
    return record


def _check_place(result: Result, path: Path) -> None:
    """Refuse a result that was copied from another stage directory, as its fingerprint shows."""
    here, _, _ = path.parent.resolve().name.partition(".again-")
    there = f"{result.stage}-{result.fingerprint}"
    if result.fingerprint and here != there and here.partition("-")[0] in STAGE_NAMES:
        raise UserError(
            f"{path} is that of {there}, copied from there; `rm -r {path.parent.resolve()}` and "
            "launch again to rebuild it"
        )


def write(record: Record, directory: Path) -> None:
    """Write a record atomically; fields that were not set are left out."""
    rundir.write_json(directory / record.FILE, record.values())


def rows(kind: type[R], directory: Path) -> Iterator[R]:
    """Yield the rows of a kind, oldest first; skip a last line that a kill cut off.

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
    """Return the events of the attempts at a stage, without the supervisor's in the same file.

    Raises:
        UserError: a line is damaged.
    """
    return [row for row in rows(Event, directory) if row.attempt]


def progress(directory: Path) -> Progress | None:
    """Return the newest progress of a stage, safe to print; None before the first."""
    try:
        row = read(Progress, directory)
        return row.model_copy(update={"text": line(row.text)})
    except (OSError, UserError):
        return None
