"""Describe the events of a stage that `logs` prints: how each attempt begins, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.records.schemas import Event

OPENING: dict[str, Callable[[Event], str]] = {
    "began": lambda row: f"job {row.job} begins on {', '.join(row.nodes)}",
    "started": lambda row: f"attempt {row.attempt} begins",
    "resumed": lambda row: f"attempt {row.attempt} goes on from step {row.step}",
}
CLOSING: dict[str, Callable[[Event], str]] = {
    "signal": lambda row: f"SLURM sends {row.signal}",
    "stopped": lambda row: f"attempt {row.attempt} has saved and stopped",
    "failed": lambda row: f"failed: {row.message}",
    "requeued": lambda row: f"requeued ({row.why}), {_saved(row)}",
    "refused": lambda row: row.why,
    "ended_by_slurm": lambda row: f"SLURM ends the job ({row.why})",
    "gave_up": lambda row: f"given up ({row.why}), {_saved(row)}",
    "finished": lambda row: f"attempt {row.attempt} has finished",
}
WORDS = OPENING | CLOSING


@dataclass(kw_only=True)
class AttemptEvents:
    """The events of one attempt, each with its index among all: before and after its log."""

    attempt: int = 0
    opening: list[tuple[int, Event]] = field(default_factory=list)
    closing: list[tuple[int, Event]] = field(default_factory=list)


def by_attempt(events: Sequence[Event]) -> list[AttemptEvents]:
    """Return the events that are worth a line, attempt by attempt, oldest first.

    Events of a supervisor have no attempt number. They belong to the attempt that starts next, or
    to the one that runs.
    """
    found = [AttemptEvents()]
    for number, row in enumerate(events):
        if row.event not in WORDS:
            continue
        another = row.attempt > found[-1].attempt > 0 or row.event == "began"
        if another and (found[-1].attempt or found[-1].closing):
            found.append(AttemptEvents())
        group = found[-1]
        group.attempt = group.attempt or row.attempt
        (group.opening if row.event in OPENING else group.closing).append((number, row))
    return found


def _saved(row: Event) -> str:
    return f"up to {row.saved} is saved" if row.saved else "nothing is saved"
