"""Test which successors a launch cancels, and how a finished job frees its dependents."""

from pathlib import Path

import pytest

from slurm import queue, successor
from slurm.job import Job, Resources
from slurm.records import Submission
from tests.slurm.test_requeue import entry, here


@pytest.fixture
def job(tmp_path):
    Submission(event="submitted", id="7", token="t").note(tmp_path)
    Submission(event="submitted", id="8", token="t", successor_of="7").note(tmp_path)
    return Job(
        name="train", command=("true",), directory=tmp_path, finished=Path(tmp_path, "result.json"),
        resources=Resources(time_limit=5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "state", "finished", "vain"),
    [
        ("PREEMPTED", "PENDING", False, []),
        ("PREEMPTED", "RUNNING", False, []),
        ("CANCELLED", "PENDING", False, ["8"]),
        ("CANCELLED", "RUNNING", False, ["8"]),  # the successor is about to refuse
        ("FAILED", "RUNNING", False, ["8"]),
        ("FAILED", "RUNNING", True, []),  # the successor succeeds, and frees its dependents
        (None, "RUNNING", False, []),  # job 7 is forgotten; the successor checked it before
        (None, "PENDING", False, ["8"]),
    ],
)
def test_a_useless_successor_is_cancelled(first, state, finished, vain, job, monkeypatch):
    monkeypatch.setattr(queue.scheduler, "end", lambda id: first)
    if finished:
        job.finished.touch()
    assert queue._in_vain([job], {"8": entry(id="8", state=state)}) == vain


def test_dependents_of_a_finished_job_do_not_wait_for_its_successor(job, monkeypatch):
    """If SLURM preempts a successor as it starts, SLURM cancels the dependents of the successor."""
    asked = []
    waiting = {"9": entry(id="9", after=("6", "7")), "10": entry(id="10", after=("8",))}
    monkeypatch.setattr(successor, "submitted_with", lambda folder: (job, "6"))
    monkeypatch.setattr(successor.Allocation, "here", here)
    monkeypatch.setattr(successor.scheduler, "user_jobs", lambda: waiting)
    monkeypatch.setattr(successor.scheduler, "call", lambda *words: asked.append(words))
    job.finished.touch()
    assert successor.main(job.directory) == 0
    assert asked == [("scontrol", "update", "JobId=9", "Dependency=")]
