"""What interruptions cost, told from events."""

import pytest

from pipeline.records.lost import seconds
from pipeline.records.schemas import Event


def event(time, attempt, event, file=""):
    return Event(time=time, attempt=attempt, event=event, file=file)


FIRST = [event(0, 1, "started"), event(10, 1, "first_step"), event(50, 1, "saved", "a")]
SECOND = [event(100, 2, "started"), event(105, 2, "resumed", "a"), event(110, 2, "first_step")]
BROKEN = event(90, 2, "started")
THIRD = [event(100, 3, "started"), event(105, 3, "resumed", "a"), event(110, 3, "first_step")]

CASES = {
    "nothing happened": (FIRST, 0),
    "asked to stop, saved and left": ([*FIRST, event(51, 1, "stopped"), *SECOND], 60),
    "killed long after it had saved": ([*FIRST, event(80, 1, "growth"), *SECOND], 60),
    "killed twice, once before a step": ([*FIRST, BROKEN, *THIRD], 60),
    "no step yet": ([*FIRST, BROKEN], 0),
    "killed before it had saved": (
        [*FIRST[:2], event(100, 2, "started"), event(110, 2, "first_step")], 100,
    ),
    "killed twice before it had saved": (
        [*FIRST[:2], event(30, 2, "first_step"), event(50, 3, "first_step")], 40,
    ),
    "a stage without steps": ([event(0, 1, "started"), event(30, 2, "started")], 30),
    "what a supervisor noted is not the stage's": ([*FIRST, event(60, 0, "requeued")], 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_was_not_saved_is_lost_too(case):
    events, lost = CASES[case]
    assert seconds(events) == lost
