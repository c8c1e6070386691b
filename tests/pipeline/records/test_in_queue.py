"""Test `records.stage_status`: the state of a stage whose job is or was in SLURM's queue."""

from datetime import datetime

import pytest

from pipeline.records import stage_status
from slurm.entry import Entry
from slurm.records import Event, Submission

PLAIN = {"id": "7", "nodes": "n1", "reason": "None", "restarts": 0, "after": ()}


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"state": "RUNNING"}, "running", "on n1"),
        ({"state": "SUSPENDED"}, "suspended", "by SLURM, on n1"),
        ({"state": "STOPPED"}, "suspended", "by SLURM, on n1"),
        ({"state": "COMPLETING"}, "stopping", "ends its job"),
        ({"state": "PENDING", "reason": "Resources"}, "queued", "Resources"),
        ({"state": "PENDING", "reason": "Resources", "restarts": 1}, "requeued", "Resources"),
        ({"state": "PENDING", "reason": "BeginTime", "start": datetime(2026, 11, 27, 10)},
         "requeued", "10:00:00"),
        ({"state": "PENDING", "reason": "Dependency", "after": ("6",)}, "waiting", "for train"),
        ({"state": "PENDING", "reason": "launch failed requeued held", "restarts": 1}, "held",
         "scontrol release 7"),
        ({"state": "PENDING", "reason": "JobHeldUser"}, "held", "scontrol release 7"),
        ({"state": "SPECIAL_EXIT"}, "held", "scontrol release 7"),
    ],
)  # fmt: skip
def test_the_state_of_a_job_decides_the_state_of_its_stage(facts, state, words):
    entry = Entry(**dict.fromkeys(Entry.__dataclass_fields__) | PLAIN | facts)
    found, why = stage_status._in_queue(entry, {"6": "train"})
    assert found == state
    assert words in why


DEAD = PLAIN | {"state": "FAILED", "comment": "mark", "name": "train", "start": datetime.now()}


@pytest.mark.parametrize(
    ("queue", "begun", "state", "words"),
    [
        ({}, False, "stopped", "job 7 left SLURM's queue before it began; launch again"),
        (
            {},
            True,
            "stopped",
            "nothing recorded how it ended: its batch script or its node was lost",
        ),
        ({"7": DEAD | {"signal": 9}}, False, "failed", "its batch script was killed; launch again"),
        ({"7": DEAD | {"signal": 9}}, True, "failed", "its batch script was killed; launch again"),
        ({"7": DEAD | {"signal": 53}}, False, "failed", "nothing came from n1"),
    ],
)
def test_a_stage_whose_job_is_gone_says_how_it_ended(queue, begun, state, words, tmp_path):
    Submission(event="submitted", id="7", token="mark").note(tmp_path)
    if begun:
        Event(event="began", job="7", restart=0, nodes=["n1"]).note(tmp_path)
    blank = dict.fromkeys(Entry.__dataclass_fields__)
    known = {id: Entry(**blank | facts) for id, facts in queue.items()}
    found = stage_status.of("train", tmp_path, known, {})
    assert (found.state, found.why[: len(words)]) == (state, words)


BEGAN = {"event": "began", "job": "7", "restart": 0, "nodes": ["n1"]}
STOPPED = {"event": "ended", "job": "7", "restart": 0, "code": 75}


def left(state):
    """Return the event in which an attempt records that SLURM has ended its job."""
    return {"event": "ended_by_slurm", "job": "7", "restart": 0, "why": state}


@pytest.mark.parametrize(
    ("events", "state", "words"),
    [
        ([BEGAN, STOPPED, left("CANCELLED")], "cancelled", "its job was cancelled"),
        ([BEGAN, STOPPED, left("TIMEOUT")], "failed", "its job met the time limit"),
        ([BEGAN, STOPPED, left("PREEMPTED")], "failed", "its job was preempted and not requeued"),
        ([BEGAN, STOPPED], "stopped", "launch again to go on"),
        ([BEGAN, STOPPED, left("CANCELLED"), BEGAN, STOPPED], "stopped", "launch again to go on"),
    ],
)
def test_the_state_that_an_attempt_recorded_is_told_when_slurm_has_forgotten_the_job(
    events, state, words, tmp_path
):
    Submission(event="submitted", id="7", token="mark").note(tmp_path)
    for facts in events:
        Event(**facts).note(tmp_path)
    found = stage_status.of("train", tmp_path, {}, {})
    assert (found.state, found.why[: len(words)]) == (state, words)


@pytest.mark.parametrize(
    ("last", "state", "words"),
    [
        ({"event": "gave_up", "why": "crashed", "saved": 9}, "failed", "given up after attempts"),
        ({"event": "refused", "why": "job 7 may not be requeued"}, "stopped", "job 7 may not be"),
        ({"event": "ended", "code": 2}, "stopped", "launch again to go on"),
        ({"event": "ended", "code": 75}, "unknown", "SLURM does not report job 7"),
        ({"event": "requeued", "why": "crashed"}, "unknown", "SLURM does not report job 7"),
    ],
)
def test_a_recorded_decision_is_told_while_slurm_does_not_answer(last, state, words, tmp_path):
    Submission(event="submitted", id="7", token="mark").note(tmp_path)
    for facts in (BEGAN, {"job": "7", "restart": 0, **last}):
        Event(**facts).note(tmp_path)
    found = stage_status.of("train", tmp_path, None, {})
    assert (found.state, found.why[: len(words)]) == (state, words)


def test_a_decision_about_an_earlier_job_is_not_told_of_a_later_one(tmp_path):
    """Another launch has submitted the stage again after it was given up."""
    Submission(event="submitted", id="7", token="mark", time=1).note(tmp_path)
    Event(event="gave_up", job="7", restart=0, why="crashed", saved=9, time=2).note(tmp_path)
    Submission(event="submitted", id="8", token="mark", time=3).note(tmp_path)
    assert stage_status.of("train", tmp_path, None, {}).state == "unknown"
