"""Test `records.lost`: the seconds that interruptions cost, computed from events."""

import pytest

from pipeline.records.lost import seconds
from pipeline.records.schemas import Event


def event(time, attempt, event, file="", **more):
    return Event(time=time, attempt=attempt, event=event, file=file, **more)


def started(time, attempt, last_progress):
    return event(time, attempt, "started", last_progress=last_progress)


def began(time, job):
    """Return the event `began` of a supervisor, which has no attempt number."""
    return event(time, 0, "began", job=job)


FIRST = [event(0, 1, "started"), event(10, 1, "first_step"), event(50, 1, "saved", "a")]
SECOND = [event(100, 2, "started"), event(105, 2, "resumed", "a"), event(110, 2, "first_step")]
BROKEN = event(90, 2, "started")
THIRD = [event(100, 3, "started"), event(105, 3, "resumed", "a"), event(110, 3, "first_step")]

CASES = {
    "never interrupted": (FIRST, 0),
    "stopped by a signal, launched again later": ([*FIRST, event(51, 1, "stopped"), *SECOND], 11),
    "killed long after it had saved": ([*FIRST, event(80, 1, "growth"), *SECOND], 40),
    "killed, and its last progress is known": (
        [*FIRST, started(100, 2, 85), *SECOND[1:]], 45,
    ),
    "killed twice, once before a step": ([*FIRST, BROKEN, *THIRD], 10),
    "requeued: the queue counts": (
        [began(-1, "7"), *FIRST, event(51, 1, "stopped"), began(99, "7"), *SECOND], 60,
    ),
    "requeued twice": ([began(-1, "7"), *FIRST, began(89, "7"), BROKEN, began(99, "7"), *THIRD], 60),
    "requeued, then launched again": (
        [began(-1, "7"), *FIRST, began(89, "7"), BROKEN, began(99, "8"), *THIRD], 50,
    ),
    "its successor job continued": ([began(-1, "7"), *FIRST, began(99, "successor"), *SECOND], 60),
    "a job launched later continued": ([began(-1, "7"), *FIRST, began(99, "8"), *SECOND], 10),
    "a superseded attempt still writes": (
        [*FIRST, *SECOND, event(111, 1, "failed"), event(130, 2, "saved", "b")], 10,
    ),
    "no step yet": ([*FIRST, BROKEN], 0),
    "killed before it had saved": (
        [*FIRST[:2], started(100, 2, 60), event(110, 2, "first_step")], 60,
    ),
    "killed twice before it had saved": (
        [
            *FIRST[:2], started(20, 2, 19), event(30, 2, "first_step"),
            started(40, 3, 38), event(50, 3, "first_step"),
        ], 37,
    ),
    "a stage without steps": (
        [event(0, 1, "started"), event(20, 1, "stopped"), event(30, 2, "started")], 20,
    ),
    "events of a supervisor do not count": ([*FIRST, event(60, 0, "requeued")], 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_time_lost_includes_work_after_the_last_checkpoint(case):
    events, lost = CASES[case]
    assert seconds(events, ["successor"]) == lost
