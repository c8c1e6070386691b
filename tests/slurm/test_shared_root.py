"""Two users on one root: a stage that one of them has in the queue is not submitted again."""

import os

from slurm import queue, scheduler
from slurm.records import Submission


def test_only_jobs_of_others_are_asked_for_by_their_ids(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scheduler, "known", lambda ids: asked.append(ids) or {})
    for name, user in (("own", os.geteuid()), ("old", None), ("theirs", os.geteuid() + 1)):
        directory = tmp_path / name
        directory.mkdir()
        row = Submission(event="submitted", id=name, token="t", user=user)
        row.note(directory)
    queue.of_others(sorted(tmp_path.iterdir()))
    assert asked == [["theirs"]]


def test_jobs_that_slurm_has_forgotten_are_none(monkeypatch):
    def call(*command):
        raise scheduler.Refused("Invalid job id specified")

    monkeypatch.setattr(scheduler, "call", call)
    assert scheduler.known(["7"]) == {}
    assert scheduler.known([]) == {}
