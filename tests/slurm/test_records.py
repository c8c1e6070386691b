"""Test that the records of a job can be written and read, and that damaged lines are skipped."""

import json

import pytest

from slurm import records
from slurm.records import Event, Submission

CASES = [
    (
        Event(event="began", time=1.0, job="7", restart=0, nodes=["n1"], gpus=0),
        {"time": 1.0, "event": "began", "job": "7", "restart": 0, "nodes": ["n1"], "gpus": 0},
    ),
    (
        Event(event="ended", time=2, job="7_1", restart=3, node=0, code=75, saved=9),
        {
            "time": 2,
            "event": "ended",
            "job": "7_1",
            "restart": 3,
            "node": 0,
            "code": 75,
            "saved": 9,
        },
    ),
    (
        Submission(event="intent", time=1.0, token="t", index=0),
        {"time": 1.0, "event": "intent", "token": "t", "index": 0},
    ),
    (
        Submission(event="submitted", time=1.0, id="8", token="t", successor_of="7"),
        {"time": 1.0, "event": "submitted", "id": "8", "token": "t", "successor_of": "7"},
    ),
    (
        Submission(event="attached", time=1.0, id="8", runs=["a", "b"]),
        {"time": 1.0, "event": "attached", "id": "8", "runs": ["a", "b"]},
    ),
]


@pytest.mark.parametrize(("record", "row"), CASES)
def test_a_record_is_written_with_these_keys_and_read_again(record, row, tmp_path):
    record.note(tmp_path)
    assert json.loads((tmp_path / record.FILE).read_text()) == row
    assert type(record).read(tmp_path) == [record]


@pytest.mark.parametrize(
    "line",
    [
        "", "null", "7", "[]", "{}", '{"time": 1.0', "\x00\x00", "[" * 5000,
        '{"time": 1.0, "event": "started", "attempt": 1}',  # the command wrote this event
        '{"event": "ended", "job": "7", "restart": 0}',
        '{"time": "x", "event": "ended", "job": "7", "restart": 0}',
        '{"time": 1.0, "event": "ended", "job": 7, "restart": 0}',
        '{"time": 1.0, "event": "ended", "job": "7", "restart": 0, "code": "1"}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_event_of_supervision_is_skipped(line, tmp_path):
    known = Event(event="signal", time=1.0, job="7", restart=0)
    (tmp_path / records.EVENTS).write_text(line + "\n")
    known.note(tmp_path)
    assert Event.read(tmp_path) == [known]


def test_an_unknown_key_of_a_record_is_skipped(tmp_path):
    row = {"time": 1.0, "event": "ended", "job": "7", "restart": 0, "since": "then"}
    (tmp_path / records.EVENTS).write_text(json.dumps(row) + "\n")
    assert Event.read(tmp_path) == [Event(event="ended", time=1.0, job="7", restart=0)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"saved": 7}', 7),
        ("{}", 0),
        ("null", 0),
        ('{"saved": null}', 0),
        ("{", 0),
        (None, 0),
        ('{"saved": 1e999}', 0),
    ],
)
def test_the_saved_step_of_a_job_is_read_or_zero(text, found, tmp_path):
    if text is not None:
        (tmp_path / records.PROGRESS).write_text(text)
    assert records.saved(tmp_path) == found
