"""Test that jobs are recognized by their comment, their name, or their id and submit time."""

from datetime import datetime

import pytest

from slurm import doctor, marks
from slurm.entry import Entry
from slurm.queue import queued
from slurm.records import Submission
from slurm.scheduler import Refused

NOW = datetime(2026, 11, 27, 10)


def entry(**facts):
    fields = {"id": "7", "state": "PENDING", "name": "night.train", "comment": "project=ml",
              "submitted": NOW, "requeues": True}  # fmt: skip
    return Entry(**dict.fromkeys(Entry.__dataclass_fields__) | fields | facts)


@pytest.mark.parametrize(
    ("job", "submitted", "known"),
    [
        (entry(comment="mark"), None, True),
        (entry(name="night.train.mark"), None, True),
        (entry(name="mark"), None, True),
        (entry(), None, False),
        (entry(comment="mark, and more"), None, False),
        (entry(), NOW, True),
        (entry(submitted=NOW.replace(hour=11)), NOW, True),  # the job was requeued
        (entry(submitted=NOW.replace(hour=9)), NOW, False),  # the job of an earlier cluster
        (entry(id="8"), NOW, False),
        (entry(submitted=None), NOW, False),
    ],
)
def test_a_queued_job_is_matched_with_its_record(job, submitted, known):
    when = submitted and submitted.timestamp()
    row = Submission(event="submitted", id="7", token="mark", submitted=when)
    assert marks.known(job, row) is known


@pytest.mark.parametrize(
    ("found", "kept", "times"),
    [
        ({"comment": "mark"}, ["comment"], []),
        ({"comment": "mark", "name": "a.mark"}, ["comment", "name"], []),
        ({"name": "a.mark"}, ["name"], []),
        ({}, [], [NOW.timestamp()]),
    ],
)
def test_jobs_without_a_mark_are_recorded_with_their_submit_time(
    tmp_path, monkeypatch, found, kept, times
):
    seen = entry(id="7_0", **found)
    monkeypatch.setattr(marks.scheduler, "find", lambda id: seen)
    rows = {}
    for index in "01":
        (tmp_path / index).mkdir()
        row = Submission(event="submitted", id=f"7_{index}", token="mark")
        row.note(tmp_path / index)
        rows[tmp_path / index] = row
    assert marks.read_back(rows) == kept
    for directory in rows:
        noted = [row.submitted for row in Submission.read(directory)]
        assert noted == [None, *times]
    assert queued(tmp_path / "0", {"7_0": seen}) == [(seen, None)]


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (["comment", "name"], "jobs keep their comment"),
        (
            ["name"],
            "overwrites job comments; our jobs are recognized by a mark in their names, and by",
        ),
        ([], "overwrites job comments; our jobs are recognized by their ids and when"),
    ],
)
def test_the_doctor_says_how_jobs_are_recognized(kept, words):
    assert words in doctor._known_by(kept).what


@pytest.mark.parametrize("found", [None, entry(requeues=False)])
def test_a_job_that_slurm_does_not_know_or_would_not_requeue_is_refused(
    tmp_path, monkeypatch, found
):
    monkeypatch.setattr(marks.scheduler, "find", lambda id: found)
    row = Submission(event="submitted", id="7", token="mark")
    with pytest.raises(Refused, match=r"does not know of it|Requeue=0"):
        marks.read_back({tmp_path: row})
