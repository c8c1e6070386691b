"""Compute the time that a stage needs: the seconds to its end, and its GPU-hours."""

from __future__ import annotations

import time
from collections.abc import Iterable

from pipeline.records.schemas import Event, Progress


def eta(events: list[Event], progress: Progress) -> float | None:
    """Return the remaining seconds: as reported by the stage, or from the pace of this attempt."""
    if progress.eta is not None:
        return max(0.0, progress.eta - max(0.0, time.time() - progress.time))
    begun = [row for row in events if row.event in ("first_step", "started")]
    if not begun or not progress.total:
        return None
    seconds = progress.time - begun[-1].time
    steps = progress.done - begun[-1].step
    return (progress.total - progress.done) * seconds / steps if steps > 0 < seconds else None


def gpu_hours(events: Iterable[Event]) -> float:
    """Return the GPU-hours of all attempts that a supervisor recorded; 0 without a supervisor."""
    total, began, last = 0.0, None, None
    for last in events:
        if last.event == "began":
            began = last
        elif last.event == "ended" and began:
            total += _used(began, last)
            began = None
    return total + (_used(began, last) if began and last else 0.0)


def _used(began: Event, last: Event) -> float:
    """Return the GPU-hours between two events; 0 if the clock was set back."""
    return began.gpus * max(0.0, last.time - began.time) / 3600
