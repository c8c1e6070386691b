"""What interruptions cost: work that was not saved, the queue, the start of the next attempt."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.records.schemas import Event


def seconds(events: Sequence[Event]) -> float:
    """Return the time from the save that an attempt goes on from to its first step, over all.

    What ends before it has saved anything is repeated, and so lost, from its first step on. An
    attempt that makes no step is part of the gap; stages without steps count from start to start.
    """
    own = [row for row in events if row.attempt]
    steps = {row.attempt: row.time for row in own if row.event == "first_step"}
    starts = steps or {row.attempt: row.time for row in own if row.event == "started"}
    total = 0.0
    for number in sorted(starts)[1:]:
        before = [row for row in own if row.attempt < number and row.attempt in starts]
        after = [row for row in own if row.attempt == number]
        total += max(0.0, starts[number] - _left_off(before, after, starts))
    return total


def _left_off(before: list[Event], after: list[Event], starts: dict[int, float]) -> float:
    """Return when the work had been done that an attempt did not have to repeat."""
    files = {row.file for row in after if row.event == "resumed"}
    if files:
        saves = [row.time for row in before if row.event == "saved" and row.file in files]
        return (saves or [row.time for row in before])[-1]
    return starts[before[-1].attempt]
