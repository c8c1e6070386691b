"""How a stage ended that ran in processes of its own, told by its files and by who died first."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.display.outside import say
from pipeline.errors import BAD_INPUT, DONE, FAILED, STOPPED
from pipeline.execution.processes import HUNG, End
from pipeline.records import attempt, disk, rundir, store
from pipeline.records.schemas import Event
from pipeline.signals import interrupt

SIGNS = (
    HUNG.encode(),
    b"Timeout (",
)  # of a process that was ended, or ended itself, without a step


def note_killed(directory: Path, number: int, end: End | None) -> None:
    """Note that a process was killed; it could not itself."""
    killed = end and end.signal and end.signal not in interrupt.SIGNALS
    if killed and not attempt.vanished(directory):
        _note(directory, number, "failed", kind="killed", message=str(end))


def of_other_node(end: End | None) -> int:
    """Return the exit code of a node that has no say in how the stage ended."""
    if end is None:
        return DONE
    return STOPPED if end.signal in interrupt.SIGNALS else FAILED


def verdict(directory: Path, number: int, end: End | None) -> int:
    """Return the exit code that the files of a stage tell, whose processes have ended.

    Their own codes say too little: one whose connection broke because another refused its input
    has crashed as well.
    """
    if attempt.vanished(directory):
        say(vanished(directory), file=sys.stderr)
        return BAD_INPUT
    if (directory / rundir.RESULT).exists():
        return DONE
    if end and end.signal in interrupt.SIGNALS:  # it had not begun, so there was nothing to save
        _note(directory, number, "stopped")
    elif end and interrupt.requested() and _hung(directory, number):
        _note(directory, number, "stopped", why="no step in time; nothing more was saved")
    told = attempt.ending(directory, number) or _without_a_word(directory, number, end)
    if told.event == "stopped":
        return STOPPED
    say(f"error: {told.message}", file=sys.stderr)  # below what the processes say
    return BAD_INPUT if told.kind == "input" else FAILED


def _without_a_word(directory: Path, number: int, end: End | None) -> Event:
    """Note the end of an attempt whose processes could not."""
    kind = "error"
    if _hung(directory, number):
        message = f"no step within cluster.hang_timeout; {directory / 'logs'} tells where each hung"
    elif refused := disk.refusal(directory):  # they could not write why
        kind, message = "input", str(refused)
    else:
        message = str(end or "the processes ended without a result")
    return _note(directory, number, "failed", kind=kind, message=message)


def _hung(directory: Path, number: int) -> bool:
    """Whether a process ended because it made no step."""
    logs = (directory / "logs").glob(f"attempt-{number:03d}*")
    return any(sign in content for log in logs for content in [log.read_bytes()] for sign in SIGNS)


def _note(directory: Path, number: int, event: str, **facts: Any) -> Event:
    row = Event(time=time.time(), event=event, attempt=number, **facts)
    with suppress(OSError):  # a full disk; it is printed, too
        store.note(row, directory)
    return row


def vanished(directory: Path) -> str:
    """Return what to say where the directory of a stage is gone."""
    return f"error: {directory} has vanished; restore it and launch again"
