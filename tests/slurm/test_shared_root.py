"""Test how a launch finds jobs that another user has submitted below the same root."""

import os

from slurm import queue, scheduler
from slurm.records import Submission


def test_only_jobs_of_other_users_are_looked_up_by_id(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scheduler, "known", lambda ids: asked.append(ids) or {})
    for name, user in (("own", os.geteuid()), ("old", None), ("theirs", os.geteuid() + 1)):
        directory = tmp_path / name
        directory.mkdir()
        row = Submission(event="submitted", id=name, token="t", user=user)
        row.note(directory)
    queue.of_others(sorted(tmp_path.iterdir()))
    assert asked == [["theirs"]]


def test_ids_that_slurm_has_forgotten_are_left_out(monkeypatch):
    def call(*command):
        raise scheduler.Refused("Invalid job id specified")

    monkeypatch.setattr(scheduler, "call", call)
    assert scheduler.known(["7"]) == {}
    assert scheduler.known([]) == {}
