"""What SLURM prints, understood."""

import subprocess
from datetime import datetime

import pytest

from slurm import scheduler
from slurm.notation import minutes
from slurm.scheduler import Unreachable


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("90", 90), ("0", 0), ("5:00", 5), ("0:30", 0.5), ("1:30:00", 90), ("100:00:00", 6000),
        ("1-00:00:00", 1440), ("2-12", 3600), ("2-12:30", 3630), ("0-00:00:01", 1 / 60),
        ("UNLIMITED", None), ("Partition_Limit", None), ("NOT_SET", None), ("INVALID", None),
    ],
)  # fmt: skip
def test_a_duration_is_read_as_slurm_writes_it(text, found):
    assert minutes(text) == (None if found is None else pytest.approx(found))


@pytest.mark.parametrize("text", ["", "x", "5m", "-5", "1:2:3:4", "1.5", "1-", " 5", "5 min"])
def test_what_is_no_duration_is_refused_with_those_that_are(text):
    with pytest.raises(ValueError, match=r"is not a duration; use minutes, HH:MM:SS or D-HH:MM:SS"):
        minutes(text)


def line(**changed):
    fields = {
        "id": "12", "state": "RUNNING", "reason": "None", "restarts": "0",
        "start": "2026-11-27T10:00:00", "end": "2026-11-27T11:00:00", "nodes": "n[1-2]",
        "after": "(null)", "name": "train", "comment": "token",
        "submitted": "2026-11-27T09:00:00", "limit": "1:00:00", "code": "0:0", "requeues": "1",
    }  # fmt: skip
    return "".join(f"{field}\x1f" for field in (fields | changed).values()) + "\x1e\n"


def entry(**changed):
    (found,) = scheduler._entries(line(**changed)).values()
    return found


def test_a_line_of_squeue_becomes_an_entry():
    found = entry()
    assert (found.id, found.state, found.restarts) == ("12", "RUNNING", 0)
    assert (found.start, found.end) == (datetime(2026, 11, 27, 10), datetime(2026, 11, 27, 11))
    assert (found.submitted, found.requeues) == (datetime(2026, 11, 27, 9), True)
    assert (found.limit, entry(limit="UNLIMITED").limit) == (60, None)
    assert entry(end="NONE").end is None
    assert (found.nodes, found.name, found.comment) == ("n[1-2]", "train", "token")
    assert found.after == ()


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("0:0", 0),
        ("0:9", 9),
        ("1:0", 0),
        ("0:15", 15),
        ("0", 0),
        ("9", 9),
        ("256", 0),
        ("4021", 53),
    ],
)
def test_the_signal_in_an_exit_code_is_read_in_new_and_old_notation(code, number):
    assert entry(code=code).signal == number


@pytest.mark.parametrize(
    ("id", "dependency", "after"),
    [
        ("12", "afterok:7(unfulfilled)", ("7",)),
        ("12", "afterok:7(unfulfilled),afterok:8(unfulfilled)", ("7", "8")),
        ("12", "afterok:7(unfulfilled)?afterok:9(unfulfilled)", ("7", "9")),
        ("12", "afterok:7_2(unfulfilled)", ("7_2",)),
        ("12_3", "aftercorr:7_*(unfulfilled)", ("7_3",)),
        ("12", "afternotok:7(unfulfilled)", ("7",)),
        ("12", "afterok:7(unfulfilled),afterok:7(unfulfilled)", ("7",)),
        ("12", "(null)", ()),
    ],
)
def test_what_a_job_waits_for_is_read_from_its_dependency(id, dependency, after):
    assert entry(id=id, after=dependency).after == after


@pytest.mark.parametrize(
    ("state", "active"),
    [
        ("RUNNING", True), ("PENDING", True), ("COMPLETING", True), ("REQUEUED", True),
        ("SUSPENDED", True), ("COMPLETED", False), ("CANCELLED", False), ("TIMEOUT", False),
        ("PREEMPTED", False), ("NODE_FAIL", False), ("SPECIAL_EXIT", True), ("OF_TOMORROW", True),
    ],
)  # fmt: skip
def test_only_a_job_that_may_still_work_is_active(state, active):
    assert entry(state=state).active is active


@pytest.mark.parametrize(
    "text",
    [
        "slurm_load_jobs error\n", "JOBID PARTITION NAME\n", line(restarts="many"),
        line(start="soon"), line(start="12:26:22"), line(end="long"), line()[:40],
        line().replace("\x1f", "|", 1),
    ],
)  # fmt: skip
def test_a_queue_with_what_is_no_job_is_unknown_and_not_empty(text):
    with pytest.raises(Unreachable, match="cannot be read"):
        scheduler._entries(line(id="13") + text)


def test_an_empty_queue_is_empty():
    assert scheduler._entries("") == {}


def test_names_and_comments_may_hold_anything_that_is_typed():
    found = scheduler._entries(line(name="a|b", comment="one\ntwo|three") + line(id="13"))
    assert found.keys() == {"12", "13"}
    assert (found["12"].name, found["12"].comment) == ("a|b", "one\ntwo|three")


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("sbatch: error: Invalid partition\n", "Invalid partition"),
        ("sbatch: error: one\nsbatch: error: two\n", "one; two"),
        ("sbatch: error: one\nsbatch: error: one\n", "one"),
        ("\n", "no reason given"),
    ],
)
def test_a_complaint_of_slurm_becomes_one_line(stderr, said):
    assert scheduler.said(stderr) == said


@pytest.mark.parametrize(
    ("state", "reason", "held"),
    [
        ("PENDING", "JobHeldUser", True), ("PENDING", "launch failed requeued held", True),
        ("PENDING", "job_requeued_in_held_state", True), ("PENDING", "JobHoldMaxRequeue", True),
        ("SPECIAL_EXIT", "None", True), ("REQUEUE_HOLD", "None", True),
        ("PENDING", "Resources", False), ("PENDING", "QOSUsageThreshold", False), ("RUNNING", "None", False),
    ],
)  # fmt: skip
def test_a_job_that_waits_for_somebody_to_release_it_is_held(state, reason, held):
    assert entry(state=state, reason=reason).held is held


@pytest.mark.parametrize(
    ("words", "how"),
    [  # what scontrol requeue says when its controller restarts, and where it was judged
        ("Unable to contact slurm controller (connect failure)", Unreachable),
        ("Unexpected message received for job 13", Unreachable),
        ("Message receive failure for job 13", Unreachable),
        ("Zero Bytes were transmitted or received", Unreachable),
        ("Slurm backup controller in standby mode", Unreachable),
        ("Requeue is disabled for job 13", scheduler.Refused),
        ("Job is pending execution for job 13", scheduler.Refused),
    ],
)
def test_a_refusal_is_told_from_no_answer(words, how, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", f"slurm_requeue error: {words}\n")
    monkeypatch.setattr(scheduler.shutil, "which", lambda name: name)
    monkeypatch.setattr(scheduler.subprocess, "run", lambda *_, **__: done)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    with pytest.raises(how, match=words.partition("(")[0]):
        scheduler.requeue("13")
