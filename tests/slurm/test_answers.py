"""Test that the output of squeue and sacct is parsed, as text and as JSON.

The folder `answers` has the output of squeue 24.11 for the same jobs in three formats, with those
fields of the JSON that are read.
"""

import json
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from slurm import answers

ANSWERS = Path(__file__).with_name("answers")


def line(**changed):
    fields = {
        "job": "12", "id": "12", "state": "RUNNING", "reason": "None", "restarts": "0",
        "start": "2026-11-27T10:00:00", "end": "2026-11-27T11:00:00", "nodes": "n[1-2]",
        "after": "(null)", "name": "train", "comment": "token",
        "submitted": "2026-11-27T09:00:00", "limit": "1:00:00", "code": "0:0", "requeues": "1",
    }  # fmt: skip
    return "".join(f"{field}\x1f" for field in (fields | changed).values()) + "\x1e\n"


def entry(**changed):
    (found,) = answers.queue_from_text(line(**changed)).values()
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
    "text",
    [
        "slurm_load_jobs error\n", "JOBID PARTITION NAME\n", line(restarts="many"),
        line(start="soon"), line(start="12:26:22"), line(end="long"), line()[:40],
        line().replace("\x1f", "|", 1),
    ],
)  # fmt: skip
def test_text_with_a_line_that_is_no_job_is_an_error_and_not_an_empty_queue(text):
    with pytest.raises(ValueError):
        answers.queue_from_text(line(id="13") + text)


def test_an_empty_queue_is_empty():
    assert answers.queue_from_text("") == {}


def test_names_and_comments_may_contain_separators_and_line_breaks():
    found = answers.queue_from_text(line(name="a|b", comment="one\ntwo|three") + line(id="13"))
    assert found.keys() == {"12", "13"}
    assert (found["12"].name, found["12"].comment) == ("a|b", "one\ntwo|three")


def kept(file):
    return (ANSWERS / file).read_text()


@pytest.fixture
def utc(monkeypatch):
    """Set the time zone in which the answers were printed."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("file", ["squeue.json", "squeue_complex.json"])
def test_json_and_text_give_the_same_jobs(file, utc):
    from_text, from_json = (
        answers.queue_from_text(kept("squeue.txt")),
        answers.queue_from_json(kept(file)),
    )
    left_out = answers.left_out(kept("squeue.txt"))
    assert left_out == ["4_19"]
    assert from_json.keys() == {*from_text, *left_out}
    assert {id: from_json[id] for id in from_text} == from_text
    assert from_json["4_19"] == replace(from_text["4_17"], id="4_19")


def several(*elements, job="7"):
    return "".join(line(job=job, id=f"7_{element}", state="PENDING") for element in elements)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (several(0, 3, 6, 9, 12), ["7_15"]),
        (several(1, 3, 5, 7, 9, 11), ["7_13"]),
        (several(0, 1, 2, 3, 4, 5), []),
        (several(0, 3, 6, 9), []),  # SLURM prints all of so few
        (several(0, 3, 6, 9, 13), []),
        (several(0, 3, 6, job="7") + several(9, 12, 15, job="8"), []),
        (several(0, 3, 6, 9, 12) + line(), ["7_15"]),
        (line() + line(id="13"), []),
        (several("[0-12:3%2]"), []),
        ("", []),
    ],
)
def test_the_last_of_several_elements_at_equal_distances_may_be_missing(text, ids):
    assert answers.left_out(text) == ids


def job(**changed):
    """Return the JSON of a job with some fields changed; a field that is None is left out."""
    first = json.loads(kept("squeue.json"))["jobs"][0] | changed
    return {key: value for key, value in first.items() if value is not None}


def answer(*jobs, **more):
    return json.dumps({"jobs": jobs, "errors": [], "warnings": [], **more})


def only(**changed):
    (found,) = answers.queue_from_json(answer(job(**changed))).values()
    return found


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["RUNNING"], "RUNNING"),
        (["CANCELLED", "COMPLETING"], "COMPLETING"),
        (["PENDING", "REQUEUED", "COMPLETING"], "COMPLETING"),
        (["PENDING", "REQUEUED"], "REQUEUED"),
        (["RUNNING", "SIGNALING"], "SIGNALING"),
        (["RUNNING", "STOPPED", "SIGNALING"], "STOPPED"),
        (["PENDING", "SPECIAL_EXIT"], "SPECIAL_EXIT"),
        (["RUNNING", "CONFIGURING", "POWER_UP_NODE"], "CONFIGURING"),
        (["FAILED", "LAUNCH_FAILED"], "FAILED"),
        (["OF_TOMORROW"], "OF_TOMORROW"),
    ],
)
def test_the_state_of_a_job_is_the_flag_or_state_that_squeue_prints_as_text(words, state):
    assert only(job_state=words).state == state


def test_every_known_flag_is_preferred_to_the_base_state():
    for flag in answers.FLAGS:
        assert only(job_state=["RUNNING", flag]).state == flag


def given(number):
    return {"set": True, "infinite": False, "number": number}


UNSET = {"set": False, "infinite": False, "number": 0}
INFINITE = {"set": False, "infinite": True, "number": 0}


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [(given(90), 90), (90, 90), (INFINITE, None), ("Infinity", None), (UNSET, None)],
)
def test_a_number_is_read_in_each_format_of_json(limit, minutes):
    assert only(time_limit=limit).limit == minutes


@pytest.mark.parametrize("end", [given(4102444800), 4102444800])
def test_a_running_job_without_a_time_limit_has_no_end(end):
    assert only(time_limit=INFINITE, end_time=end).end is None
    assert only(time_limit=INFINITE, end_time=given(1700000000)).end  # the job has ended
    assert only(time_limit=given(60), end_time=end).end


@pytest.mark.parametrize(
    ("changed", "ids"),
    [
        ({"array_task_string": "3-9:2,12%4", "array_job_id": given(5)}, ["5_3", "5_5", "5_7", "5_9", "5_12"]),
        ({"array_task_id": given(0), "array_job_id": given(5)}, ["5_0"]),
        ({"het_job_id": given(5), "het_job_offset": given(1)}, ["5+1"]),
        ({"job_id": 17}, ["17"]),
    ],
)  # fmt: skip
def test_the_ids_of_a_job_are_those_that_slurm_prints(changed, ids):
    assert [*answers.queue_from_json(answer(job(**changed)))] == ids


@pytest.mark.parametrize(
    "text",
    [
        "", "slurm_load_jobs error", "[]", "{}", "null", answer(job())[:-9],
        answer(job(), errors=[{"description": "no"}]), answer("job"), answer(job(), jobs=None),
        answer(job(), job(job_state=[])), answer(job(name=3)),
        answer(job(restart_cnt=UNSET)), answer(job(restart_cnt="many")), answer(job(end_time="soon")),
        answer(job(end_time=1e300)), answer(job(time_limit={"number": 3})), answer(job(exit_code=9)),
        answer(job(array_task_string="0,3,7-9,1.....", array_job_id=given(5))),
        answer(job(array_task_string="0,3", array_job_id=UNSET)),
        *(answer(job(**{field: None})) for field in job() if not field.startswith(("array", "het", "job_id"))),
    ],
)  # fmt: skip
def test_json_with_an_entry_that_is_no_job_is_an_error_and_not_an_empty_queue(text):
    with pytest.raises(ValueError):
        answers.queue_from_json(text)


def test_an_empty_queue_in_json_is_empty():
    assert answers.queue_from_json(answer(warnings=[{"description": "Zero jobs to dump"}])) == {}
