"""Test that each job is queued once, however often it is launched, interrupted or refused."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from slurm import scheduler
from slurm.job import Resources
from slurm.records import CANCELLED, rows
from slurm.scheduler import Refused
from tests.cluster.job_under_test import Chain, commands, launched, preempt
from tests.cluster.real import call, needs_slurm, wait_for

pytestmark = [pytest.mark.cluster, needs_slurm]


def test_a_launch_replaces_a_useless_successor(chain, partition):
    """The first job was cancelled by hand, while its successor was held."""
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working()
    (successor,) = [e for e in scheduler.user_jobs().values() if e.active and work.id in e.after
                    and e.name == "work"]  # fmt: skip
    call("scontrol", "hold", successor.id)
    call("scancel", work.id)
    wait_for(lambda: work.state() == "CANCELLED")
    first = work.id
    work.submit()
    assert work.id not in (first, successor.id)
    work.finished()


def test_a_launch_works_while_slurm_cancels_the_dependents_of_a_cancelled_job(chain):
    work = chain().submit().working()
    call("scancel", work.id)
    work.submit().finished()


def test_a_job_that_depends_on_a_queued_job_waits_for_its_successor_too(chain, partition, tmp_path):
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working()
    scheduler.cancel([work.next_id])
    again = work.submit()
    assert again.id == work.ids[work.job.directory]
    preempt(tmp_path)
    work.finished().lost_nothing()


def test_a_second_launch_submits_nothing(chain):
    work = chain(steps=20).submit()
    before = work.ids
    assert work.submit().ids == before
    work.finished()


def test_launches_at_the_same_time_submit_each_job_once(chain):
    work = chain(steps=5)
    with ThreadPoolExecutor() as pool:
        submissions = [launched(work.folder) for _ in range(3)]
        labels = {job.directory: ["a run"] for job in work.jobs}
        list(pool.map(lambda each: each.submit(work.jobs, labels), submissions))
    assert len({tuple(each.ids.values()) for each in submissions}) == 1
    work.id, work.next_id = submissions[0].ids.values()
    work.finished()


def test_a_launch_during_a_cancellation_submits_the_job_again(chain):
    work = chain().submit().working()
    (work.job.directory / CANCELLED).touch()
    scheduler.cancel([work.next_id, work.id])
    before = work.id
    assert work.submit().id != before
    work.finished()


def test_a_launch_keeps_a_job_whose_cancellation_slurm_did_not_get(chain):
    work = chain(steps=60).submit().working()
    (work.job.directory / CANCELLED).touch()
    assert work.submit().id == work.events("began")[0]["job"]
    work.finished()


def test_a_launch_that_is_interrupted_while_it_submits_leaves_no_job(chain, tmp_path, monkeypatch):
    """A stand-in for sbatch submits the job, and then does not end."""
    real = shutil.which("sbatch")
    slow = tmp_path / "bin" / "sbatch"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\n{real} "$@"\nsleep 60\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    work = chain()
    before = {id for id, entry in scheduler.user_jobs().items() if entry.active}
    alarm = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(3)
    try:
        with pytest.raises(KeyboardInterrupt):
            work.submit()
    finally:
        signal.signal(signal.SIGALRM, alarm)
    wait_for(lambda: {id for id, entry in scheduler.user_jobs().items() if entry.active} <= before)
    assert any(
        entry.name == "work" for id, entry in scheduler.user_jobs().items() if id not in before
    )


def test_if_a_job_is_refused_the_jobs_submitted_before_it_are_cancelled(chain):
    work = chain()
    impossible = Resources(time_limit=5, constraint="nowhere")
    work.jobs[1] = replace(work.next, resources=impossible)
    with pytest.raises(Refused, match="feature"):
        work.submit()
    ids = [row["id"] for row in rows(work.job.directory / "jobs.jsonl") if "id" in row]
    wait_for(lambda: work.state(ids[0]) == "CANCELLED")


def test_a_job_whose_id_was_not_recorded_is_not_submitted_twice(chain):
    work = chain(steps=20).submit()
    path = work.job.directory / "jobs.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")  # only the intent was recorded
    assert work.submit().id == work.ids[work.job.directory]
    assert len(scheduler.user_jobs()) == len({*scheduler.user_jobs()})
    work.finished()


@pytest.fixture
def array(cluster, tmp_path):
    """Return a function that submits several chains of the same kind as arrays."""

    def submit(count, steps, seconds):
        chains = []
        for number in range(count):
            folder = tmp_path / str(number)
            folder.mkdir()
            chains.append(Chain(folder, steps=steps, seconds=seconds))
        submission = launched(tmp_path, parallel=count)
        jobs = [job for work in chains for job in work.jobs]
        submission.submit(jobs, {job.directory: [] for job in jobs})
        assert len({id.split("_")[0] for id in submission.ids.values()}) == 2
        for work in chains:
            work.id, work.next_id = (submission.ids[job.directory] for job in work.jobs)
            assert work.id.split("_")[1] == work.next_id.split("_")[1]
        return chains

    return submit


def test_equal_jobs_become_one_array_and_depend_element_on_element(array):
    for work in array(3, steps=3, seconds=0):
        work.finished()


def test_one_element_of_an_array_is_requeued_alone(array):
    """The last element has the job id of the array itself."""
    chains = array(3, steps=60, seconds=0.1)
    for work in chains:
        work.working(steps=7)
    for work in (chains[0], chains[-1]):
        (pid,) = commands(work.job.directory)
        os.kill(pid, signal.SIGKILL)
    for work in chains:
        work.finished()
    assert [len(work.attempts()) for work in chains] == [2, 1, 2]


def test_names_and_comments_of_other_jobs_may_contain_separators(chain):
    strange = ("--hold", "--job-name=a|b|c", "--comment=one\ntwo|three", "--wrap=true")
    other = call("sbatch", "--parsable", "--output=/dev/null", *strange)
    chain(steps=5).submit().finished()
    call("scancel", other)
