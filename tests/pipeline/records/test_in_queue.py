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
        ({}, True, "stopped", "launch again to go on"),
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
