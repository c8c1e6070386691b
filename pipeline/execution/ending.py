"""Determine how a stage with several processes ended, from its files and its first failure."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.contract import interrupt
from pipeline.display.errors import BAD_INPUT, DONE, FAILED, STOPPED
from pipeline.display.outside import say
from pipeline.execution.processes import HUNG, End
from pipeline.records import attempt, disk, rundir, store
from pipeline.records.schemas import Event

SIGNS = (
    HUNG.encode(),
    b"Timeout (",
)  # signs in a log that a hanging process was ended by its parent, or ended itself


def note_killed(directory: Path, number: int, end: End | None) -> None:
    """Record that a process was killed; the process could not record it itself."""
    killed = end and end.signal and end.signal not in interrupt.SIGNALS
    if killed and not attempt.vanished(directory):
        _note(directory, number, "failed", kind="killed", message=str(end))


def of_other_node(end: End | None) -> int:
    """Return the exit code of a node other than the first; the first node decides the ending."""
    if end is None:
        return DONE
    return STOPPED if end.signal in interrupt.SIGNALS else FAILED


def verdict(directory: Path, number: int, end: End | None) -> int:
    """Return the exit code of a stage whose processes have ended, from its files.

    Exit codes of the processes are not enough: when one refuses its input, the connections of the
    others break and they crash.
    """
    if attempt.vanished(directory):
        say(vanished(directory), file=sys.stderr)
        return BAD_INPUT
    if (directory / rundir.RESULT).exists():
        return DONE
    if end and end.signal in interrupt.SIGNALS:  # the stage had not begun: nothing to save
        _note(directory, number, "stopped")
    elif end and interrupt.requested() and _hung(directory, number):
        _note(directory, number, "stopped", why="no step in time; nothing more was saved")
    outcome = attempt.ending(directory, number) or _without_a_word(directory, number, end)
    if outcome.event == "stopped":
        return STOPPED
    say(f"error: {outcome.message}", file=sys.stderr)  # after the output of the processes
    return BAD_INPUT if outcome.kind == "input" else FAILED


def _without_a_word(directory: Path, number: int, end: End | None) -> Event:
    """Record the end of an attempt whose processes could not record it."""
    kind = "error"
    if _hung(directory, number):
        where = f"{directory / 'logs'} shows where each process hung"
        message = f"no step within cluster.hang_timeout; {where}"
    elif refused := disk.refusal(directory):  # the processes could not write their error
        kind, message = "input", str(refused)
    else:
        message = str(end or "the processes ended without a result")
    return _note(directory, number, "failed", kind=kind, message=message)


def _hung(directory: Path, number: int) -> bool:
    """Whether a process ended because it hung."""
    logs = (directory / "logs").glob(f"attempt-{number:03d}*")
    return any(sign in content for log in logs for content in [log.read_bytes()] for sign in SIGNS)


def _note(directory: Path, number: int, event: str, **fields: Any) -> Event:
    row = Event(time=time.time(), event=event, attempt=number, **fields)
    with suppress(OSError):  # a full disk; the error is printed as well
        store.note(row, directory)
    return row


def vanished(directory: Path) -> str:
    """Return the error message for a stage directory that was removed."""
    return f"error: {directory} has vanished; restore it and launch again"
