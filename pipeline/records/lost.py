"""Compute the time lost to interruptions: repeated work, the queue, the next attempt's start."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.records.schemas import Event


def seconds(events: Sequence[Event], successors: Collection[str] = ()) -> float:
    """Return the seconds that interruptions cost, over all attempts.

    An interruption costs the time from the checkpoint that the next attempt resumes to that
    attempt's first step. An attempt that saved nothing is repeated from its first step, so all of
    it counts. An attempt without a step is part of the gap. For stages without steps, the time from
    one start to the next counts. The time until the user launched again does not count; the time in
    SLURM's queue does if the job came back by itself.

    Args:
        events: the events of a stage, oldest first.
        successors: ids of the jobs that were queued in advance to continue another.
    """
    own = [row for row in events if row.attempt]
    steps = {row.attempt: row.time for row in own if row.event == "first_step"}
    starts = steps or {row.attempt: row.time for row in own if row.event == "started"}
    idle = _idle(events, successors)
    total = 0.0
    for number in sorted(starts)[1:]:
        before = [row for row in own if row.attempt < number and row.attempt in starts]
        after = [row for row in own if row.attempt == number]
        waited = sum(idle.get(other, 0.0) for other in range(before[-1].attempt + 1, number + 1))
        total += max(0.0, starts[number] - _left_off(before, after, starts) - waited)
    return total


def _left_off(before: list[Event], after: list[Event], starts: dict[int, float]) -> float:
    """Return the time at which the work that an attempt did not have to repeat was done."""
    files = {row.file for row in after if row.event == "resumed"}
    if files:
        saves = [row.time for row in before if row.event == "saved" and row.file in files]
        return (saves or [row.time for row in before])[-1]
    return starts[before[-1].attempt]


def _idle(events: Sequence[Event], successors: Collection[str]) -> dict[int, float]:
    """Return, per attempt that a user launched, the seconds since the attempt before it ended."""
    found: dict[int, float] = {}
    jobs: set[str] = set()
    by_itself, last = False, None
    for row in events:
        if row.event == "began":
            by_itself = row.job in jobs or row.job in successors
            jobs.add(row.job)
        if not row.attempt or (last and row.attempt < last.attempt):
            continue  # an event of a supervisor, or of a superseded attempt
        if last and row.attempt > last.attempt:
            if not by_itself:
                found[row.attempt] = max(0.0, row.time - max(last.time, row.last_progress))
            by_itself = False
        last = row
    return found
