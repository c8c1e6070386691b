"""Test whether a job is requeued, given its records and its state in SLURM."""

import json
from datetime import datetime

import pytest

from slurm import requeue, supervise
from slurm.entry import Entry
from slurm.job import DONE, REFUSED, STOPPED, Job, Resources
from slurm.records import CANCELLED, Event
from slurm.supervise import Allocation

START = datetime(2026, 11, 27, 10).timestamp()
LIMIT = 60  # minutes
END = datetime.fromtimestamp(START + 60 * LIMIT)
SETTINGS = {"RequeueExit": "(null)", "RequeueExitHold": "NONE"}
EARLY = START + 600.0  # long before the time limit
LATE = START + 60 * LIMIT - 100.0  # within `signal_seconds` before the limit


@pytest.fixture
def job(tmp_path):
    return Job(
        name="train", command=("true",), directory=tmp_path, finished=tmp_path / "result.json",
        resources=Resources(time_limit=LIMIT, signal_seconds=120), retries=2,
    )  # fmt: skip


def here(restart=0, mark=""):
    return Allocation(id="7", restart=restart, node=0, names=("n1",), mark=mark)


def entry(**changed):
    known = {
        "id": "7", "name": "train", "state": "RUNNING", "reason": "None", "restarts": 0,
        "start": datetime.fromtimestamp(START), "end": END, "nodes": "n1", "after": (),
        "comment": "t", "limit": LIMIT,
    }  # fmt: skip
    return Entry(**known | changed)


def note(job, event, time=EARLY, restart=0, **facts):
    Event(event=event, time=time, job="7", restart=restart, **facts).note(job.directory)


@pytest.fixture
def requeues(monkeypatch):
    """Return a list of the jobs that were requeued; SLURM reports the job as RUNNING."""
    found = []
    monkeypatch.setattr(requeue.scheduler, "requeue", found.append)
    monkeypatch.setattr(requeue.scheduler, "find", lambda id: entry())
    monkeypatch.setattr(requeue.site, "config", lambda: SETTINGS)
    monkeypatch.setattr(requeue.time, "sleep", lambda seconds: None)
    return found


CASES = {  # times of signals, exit codes of the nodes, reason of the end
    "stopped in time": ([EARLY], [STOPPED], requeue.INTERRUPTED),
    "stopped on two nodes": ([EARLY], [STOPPED, STOPPED], requeue.INTERRUPTED),
    "stopped at the limit": ([LATE], [STOPPED], requeue.TIME_LIMIT),
    "the first signal counts": ([EARLY, LATE], [STOPPED], requeue.INTERRUPTED),
    "stopped without a signal": ([], [STOPPED], requeue.CRASHED),
    "crashed": ([], [1], requeue.CRASHED),
    "crashed after a signal": ([EARLY], [1], requeue.CRASHED),
    "one node crashed, the other saved": ([EARLY], [STOPPED, 1], requeue.CRASHED),
    "no supervisor wrote an event": ([], [], requeue.CRASHED),
}


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])  # seconds by which the node's clock is ahead
@pytest.mark.parametrize("case", CASES)
def test_the_reason_for_the_end_of_an_attempt_is_recorded(case, ahead, job, requeues):
    signals, codes, why = CASES[case]
    if signals:
        note(job, "began", START + 5 + ahead)
    for time in signals:
        note(job, "signal", time + ahead, signal="SIGTERM")
    for code in codes:
        note(job, "ended", code=code, node=0)
    requeue.decide(job, here())
    assert requeues == ["7"]
    last = Event.read(job.directory)[-1]
    assert (last.event, last.why, last.saved) == ("requeued", why, 0)


def test_a_job_preempted_with_a_grace_time_did_not_reach_its_time_limit(job, requeues, monkeypatch):
    soon = datetime.fromtimestamp(EARLY + 2)  # SLURM reports this as the end of the job
    monkeypatch.setattr(requeue.scheduler, "find", lambda id: entry(end=soon))
    note(job, "began", START)
    note(job, "signal", EARLY)
    note(job, "ended", code=STOPPED)
    requeue.decide(job, here())
    assert Event.read(job.directory)[-1].why == requeue.INTERRUPTED


def test_without_a_time_limit_a_signal_is_an_interruption(job, requeues, monkeypatch):
    monkeypatch.setattr(requeue.scheduler, "find", lambda id: entry(end=None, limit=None))
    note(job, "began", START)
    note(job, "signal", LATE)
    note(job, "ended", code=STOPPED)
    requeue.decide(job, here())
    assert Event.read(job.directory)[-1].why == requeue.INTERRUPTED


def test_the_last_line_of_output_says_why_the_stage_was_not_started(job, requeues, capsys):
    note(job, "ended", code=REFUSED, why="a is missing; launch again")
    requeue.decide(job, here())
    assert capsys.readouterr().out == "train was not started: a is missing; launch again\n"


def test_the_reason_why_a_stage_was_not_started_is_printed_once(job, requeues, monkeypatch, capsys):
    for name in ("_listen", "_deaf"):
        monkeypatch.setattr(supervise, name, lambda *_: None)
    monkeypatch.setattr(supervise.Allocation, "here", staticmethod(here))
    monkeypatch.setattr(supervise, "refusal", lambda *_: "a is missing; launch again")
    with pytest.raises(SystemExit, match="1"):
        supervise.supervise(job)
    requeue.decide(job, here())
    assert capsys.readouterr().out == "train was not started: a is missing; launch again\n"


def test_a_requeue_that_slurm_refused_is_recorded(job, requeues, monkeypatch, capsys):
    def refuse(id):
        raise requeue.scheduler.Refused("Requeue is disabled")

    monkeypatch.setattr(requeue.scheduler, "requeue", refuse)
    note(job, "signal")
    note(job, "ended", code=STOPPED)
    assert requeue.decide(job, here()) == 1
    last = Event.read(job.directory)[-1]
    assert last.event == "refused" and "may not be requeued (Requeue is disabled)" in last.why
    assert capsys.readouterr().out == f"{last.why}\n"


def test_an_attempt_that_cannot_be_recorded_is_not_requeued(job, requeues, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "events.jsonl")

    monkeypatch.setattr(requeue, "submitted_with", lambda folder: (job, None))
    monkeypatch.setattr(requeue.Allocation, "here", staticmethod(here))
    monkeypatch.setattr(Event, "note", full)
    assert requeue.main(job.directory) == 1 and not requeues
    assert "train is not requeued: [Errno 28] No space left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "code"), [("finished", DONE), ("cancelled", 1), ("refused", REFUSED)]
)
def test_a_finished_cancelled_or_refused_job_is_not_requeued(case, code, job, requeues):
    if case == "finished":
        job.finished.touch()
    elif case == "cancelled":
        (job.directory / CANCELLED).touch()
    else:
        note(job, "ended", code=REFUSED)
    assert requeue.decide(job, here()) == code
    assert requeues == []


@pytest.mark.parametrize(
    "found",
    [
        None,
        {"state": "COMPLETING"},
        {"state": "COMPLETING", "signal": 15},
        {"state": "CANCELLED"},
        {"restarts": 1},
        {"state": "COMPLETING", "signal": 9, "restarts": 1},
    ],
)  # fmt: skip
def test_only_the_current_attempt_of_a_running_job_is_requeued(found, job, requeues, monkeypatch):
    known = None if found is None else entry(**found)
    monkeypatch.setattr(requeue.scheduler, "find", lambda id: known)
    assert requeue.decide(job, here()) == 1
    assert requeues == []


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-28T10:00:00 ***", "CANCELLED"),
        ("slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-28T10:00:00 DUE TO TIME LIMIT"
         " ***", "TIMEOUT"),
        ("slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-28T10:00:00 DUE TO PREEMPTION"
         " ***", "PREEMPTED"),
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-28T10:00:00 DUE TO NODE FAILURE,"
         " SEE SLURMCTLD LOG FOR DETAILS ***", "NODE_FAIL"),
        ("my training was CANCELLED AT 2026-11-28T10:00:00 ***", None)],
)  # fmt: skip
def test_the_way_in_which_slurm_ended_a_job_is_recorded(line, state, job, requeues, monkeypatch):
    monkeypatch.setattr(requeue.scheduler, "find", lambda id: entry(state="COMPLETING"))
    assert requeue.decide(job, here(), f"epoch 1\n{line}\n") == 1
    assert [row.why for row in Event.read(job.directory)] == [state] * (state is not None)


def test_the_end_of_an_attempt_that_was_requeued_is_not_recorded(job, requeues, monkeypatch):
    """The next attempt may have begun, and its events must stay the last ones."""
    monkeypatch.setattr(requeue.scheduler, "find", lambda id: entry(state="PENDING", restarts=1))
    line = (
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-28T10:00:00 DUE TO PREEMPTION ***"
    )
    assert requeue.decide(job, here(), f"{line}\n") == 1
    assert Event.read(job.directory) == []


def test_a_job_whose_batch_script_was_killed_is_requeued_while_slurm_ends_it(
    job, requeues, monkeypatch
):
    monkeypatch.setattr(requeue.scheduler, "find", lambda id: entry(state="COMPLETING", signal=9))
    note(job, "signal", signal="SIGTERM")
    note(job, "ended", code=STOPPED)
    assert requeue.decide(job, here()) == DONE
    assert requeues == ["7"]
    failed, requeued = Event.read(job.directory)[-2:]
    assert (failed.message, requeued.why) == (requeue.ORPHANED, requeue.CRASHED)


@pytest.mark.parametrize(
    ("before", "saved", "again"),
    [
        ([], 0, True),
        ([("crashed", 0)], 0, True),
        ([("crashed", 0), ("crashed", 0)], 0, False),
        ([("crashed", 0), ("interrupted", 0), ("crashed", 0)], 0, False),
        ([("interrupted", 0), ("interrupted", 0), ("interrupted", 0)], 0, True),
        ([("crashed", 0), ("time limit", 0)], 0, False),
        ([("crashed", 5), ("crashed", 5)], 9, True),  # the last attempt made progress
        ([("crashed", 0), ("crashed", 5)], 5, True),  # the second attempt made progress
        ([("crashed", 5), ("crashed", 5)], 5, False),
    ],
)
def test_attempts_in_a_row_without_progress_are_counted(before, saved, again, job, requeues):
    for restart, (why, then) in enumerate(before):
        note(job, "requeued", restart=restart, why=why, saved=then)
    (job.directory / "progress.json").write_text(json.dumps({"saved": saved}))
    assert requeue.decide(job, here()) == 1
    assert (requeues == ["7"]) is again
    assert Event.read(job.directory)[-1].event == ("requeued" if again else "gave_up")


def test_a_new_launch_of_a_job_that_was_given_up_resets_the_count(job, requeues):
    for event in ("requeued", "requeued", "gave_up"):
        note(job, event, why=requeue.CRASHED, saved=0)
    requeue.decide(job, here())
    assert requeues == ["7"]


@pytest.mark.parametrize("mark", ["", "1795803504-31"])
def test_events_of_an_older_cluster_with_the_same_ids_do_not_count(mark, job, requeues):
    note(job, "ended", code=REFUSED, mark=mark)
    requeue.decide(job, here(mark="1795803972-31"))
    assert requeues == ["7"]


def test_a_job_that_slurm_is_suspending_is_not_taken_for_ended(job, requeues, monkeypatch):
    states = iter(["SUSPENDED", "STOPPED", "RUNNING"])
    monkeypatch.setattr(requeue.scheduler, "find", lambda id: entry(state=next(states)))
    note(job, "signal", signal="SIGTERM")
    note(job, "ended", code=STOPPED)
    requeue.decide(job, here())
    assert requeues == ["7"]


@pytest.mark.parametrize(
    ("repeated", "held", "code"),
    [("(null)", "(null)", REFUSED), ("1-3", "NONE", 4), ("2", "1,3-4", 5), ("1-255", "", REFUSED)],
)
def test_a_final_end_has_an_exit_code_for_which_slurm_does_not_requeue(
    repeated, held, code, job, requeues, monkeypatch
):
    settings = {"RequeueExit": repeated, "RequeueExitHold": held}
    monkeypatch.setattr(requeue.site, "config", lambda: settings)
    note(job, "ended", code=REFUSED, node=0)
    assert requeue.decide(job, here()) == code
    assert not requeues


PRINTED = {  # the last line of a job's log: whether the job ran out of memory
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the": True,
    "slurmstepd-n1: error: StepId=7.0 exceeded memory limit (114216960 > 106954752)": True,
    "srun: error: n1: task 0: Out Of Memory": True,
    "RuntimeError: CUDA out of memory": False,
    "srun: error: n1: task 0: Killed": False,
}


@pytest.mark.parametrize("printed", PRINTED)
def test_an_attempt_that_ran_out_of_memory_says_so(printed, job, requeues):
    requeue.decide(job, here(), f"it worked\n{printed}\n")
    messages = [row.message for row in Event.read(job.directory) if row.event == "failed"]
    assert [("cluster.memory" in text) for text in messages] == [True] * PRINTED[printed]


def test_a_node_that_wrote_no_event_is_named(job, requeues):
    where = Allocation(id="7", restart=0, node=0, names=("n1", "n2", "n3"))
    note(job, "joined", node=1)
    requeue.decide(job, where)
    (message,) = [row.message for row in Event.read(job.directory) if row.event == "failed"]
    assert message.startswith(f"nothing came from n3: do they see {job.directory}?")
