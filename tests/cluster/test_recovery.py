"""Test that a job survives what a cluster does to it, and that a cancelled job stays cancelled.

Each test is one row of the failure tables, with a light stand-in for a training
(`job_under_test.py`). In test_training.py, a real training goes through two of the failures.
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slurm import scheduler
from slurm.dev_cluster.daemons import pid, start
from slurm.entry import KILLED
from slurm.job import Job
from tests.cluster.job_under_test import commands, preempt, update
from tests.cluster.real import call, configure, end, jobs, kill, needs_slurm, wait_for

pytestmark = [pytest.mark.cluster, needs_slurm]


def test_an_undisturbed_job_succeeds(chain):
    work = chain(steps=5).submit().finished().lost_nothing()
    assert [row["code"] for row in work.events("ended")] == [0]


@pytest.mark.parametrize("grace", [0, 10])
def test_a_preempted_job_is_requeued_and_loses_nothing(chain, partition, tmp_path, grace):
    partition(GraceTime=grace)
    work = chain().submit().working()
    preempt(tmp_path)
    work.finished().lost_nothing()
    assert len(work.attempts()) == 2
    assert {row["job"] for row in work.events("ended")} == {work.id}


def test_a_preempted_job_that_is_cancelled_has_a_successor(chain, partition, tmp_path):
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working()
    for attempt in (2, 3):  # the successor has a successor, too
        preempt(tmp_path)
        work.working(attempt)
    work.finished().lost_nothing()
    jobs = [row["job"].split(".")[0] for row in work.attempts()]
    assert len(set(jobs)) == 3
    assert [scheduler.end(job) for job in jobs] == ["PREEMPTED", "PREEMPTED", "COMPLETED"]
    wait_for(lambda: not [entry for entry in scheduler.user_jobs().values() if entry.active])


def test_a_successor_does_not_continue_a_cancelled_job(chain, partition):
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working()
    call("scancel", work.id)
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    assert len(work.attempts()) == 1


def test_a_job_saves_at_the_signal_that_a_site_may_send_before_preemption(chain, cluster, tmp_path):
    settings = cluster.conf.read_text()
    configure(cluster, f"{settings}SlurmctldParameters=preempt_send_user_signal\n")
    call("scontrol", "reconfigure")
    update(GraceTime=10)
    try:
        work = chain().submit().working()
        preempt(tmp_path)
        work.finished().lost_nothing()
        assert [row["signal"] for row in work.events("signal")] == ["SIGUSR2"]
    finally:
        configure(cluster, settings)
        call("scontrol", "reconfigure")


def test_a_job_that_is_requeued_by_hand_loses_nothing(chain):
    work = chain().submit().working()
    call("scontrol", "requeue", work.id)
    work.finished().lost_nothing()


def test_a_job_is_requeued_at_its_time_limit(chain):
    work = chain(signal_seconds=120, steps=1500).submit().working()
    call("scontrol", "update", f"JobId={work.id}", "TimeLimit=2")  # SLURM checks limits every 30 s
    wait_for(lambda: work.events("requeued"))
    call("scontrol", "update", f"JobId={work.id}", "TimeLimit=10")
    work.finished().lost_nothing()
    assert [row["why"] for row in work.events("requeued")] == ["time limit"]


def test_a_cancelled_job_stays_cancelled_with_its_dependents(chain):
    work = chain().submit().working()
    call("scancel", work.id)
    wait_for(lambda: work.state() == "CANCELLED")
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    time.sleep(8)  # longer than a requeue takes
    assert work.state() == "CANCELLED"
    assert not work.events("requeued")
    assert [row["why"] for row in work.events("ended_by_slurm")] == ["CANCELLED"]
    assert len(work.attempts()) == 1


def test_a_job_whose_command_crashed_is_requeued(chain):
    work = chain().submit().working(steps=7)
    (pid,) = commands(work.job.directory)
    os.kill(pid, signal.SIGKILL)
    work.finished()
    assert [row["why"] for row in work.events("requeued")] == ["crashed"]
    assert work.attempts()[1]["begun"] == 5


def test_a_job_whose_supervisor_was_killed_is_requeued(chain):
    work = chain().submit().working(steps=7)
    (pid,) = commands(work.job.directory)
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    work.finished().lost_nothing()
    assert [row["why"] for row in work.events("requeued")] == ["crashed"]


def test_a_job_whose_batch_script_was_killed_is_requeued(chain, cluster):
    work = chain().submit().working(steps=7)
    (script,) = [
        pid
        for pid, words, seen in jobs(cluster)
        if seen["SLURM_JOB_ID"] == work.id and words[1:2] and words[1].endswith("/slurm_script")
    ]
    os.kill(script, signal.SIGKILL)
    work.finished().lost_nothing()
    assert [row["why"] for row in work.events("requeued")] == ["crashed"]
    assert [row["message"] for row in work.events("failed")] == ["its batch script was killed"]


def test_a_successor_continues_a_job_whose_processes_were_killed(chain, cluster, partition):
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working(steps=7)
    mine = [(pid, words) for pid, words, seen in jobs(cluster) if seen["SLURM_JOB_ID"] == work.id]
    for part, number in (  # a stopped script decides nothing
        ("slurm_script", signal.SIGSTOP),
        ("submitit.core._submit", signal.SIGKILL),
        ("slurm_script", signal.SIGKILL),
    ):
        kill([pid for pid, words in mine if part in " ".join(words)], number)
    work.finished()
    assert scheduler.end(work.id) == KILLED


def test_a_crash_loop_is_given_up_with_a_reason(chain):
    work = chain(crash_at=7)
    work.job = work.jobs[0] = replace(work.job, retries=1)
    work.submit()
    wait_for(lambda: work.events("gave_up"), 120)
    wait_for(lambda: work.state() == "FAILED")
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    assert len(work.attempts()) == 2
    text = "".join(path.read_text() for path in (work.folder / "slurm").glob("*_0_log.out"))
    assert "given up" in text
    assert not work.next.finished.exists()


def test_a_refusal_of_the_command_is_final(chain, tmp_path):
    work = chain()
    refusing = Job(
        name="refusing", command=("sh", "-c", "exit 2"), directory=work.job.directory,
        finished=work.job.finished, resources=work.job.resources,
    )  # fmt: skip
    work.job, work.jobs = refusing, [refusing, work.next]
    work.submit()
    wait_for(lambda: work.state() == "FAILED")
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    assert not work.events("requeued")


@pytest.fixture
def away(cluster):
    """Return a function that ends slurmctld, which runs again after the test."""
    yield lambda: end(cluster, "slurmctld")
    if not pid(cluster, "slurmctld"):
        start(cluster, "slurmctld")


def test_a_restart_of_slurmctld_disturbs_no_job(chain, cluster, away):
    work = chain(steps=100).submit().working()
    away()
    time.sleep(3)
    start(cluster, "slurmctld")
    work.finished()
    assert len(work.attempts()) == 1


def test_a_job_that_ends_while_slurmctld_is_away_is_requeued(chain, cluster, away):
    work = chain().submit().working()
    away()
    (pid,) = commands(work.job.directory)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: work.events("ended"))
    time.sleep(3)
    start(cluster, "slurmctld")
    work.finished()
    assert [row["why"] for row in work.events("requeued")] == ["crashed"]


def test_a_signal_during_start_up_loses_no_job(chain):
    work = chain(steps=5).submit()
    wait_for(lambda: work.state() == "RUNNING")
    call("scontrol", "requeue", work.id)
    work.finished()


def test_a_job_with_a_failing_setup_line_is_requeued(chain):
    work = chain(setup=("set -e", "[ -e $SLURM_SUBMIT_DIR/no ]"))
    work.submit()
    wait_for(lambda: work.events("requeued"))
    call("scancel", work.id)
    assert [row["why"] for row in work.events("requeued")] == ["crashed"]


def test_a_crash_of_one_node_is_counted_though_another_saves(chain):
    """SLURM signals the other nodes if one fails; this must not count as an interruption."""
    work = chain(nodes=2)
    other = f"""
        until [ $(grep -c begun {work.job.directory}/attempts.jsonl) -gt ${{SLURM_RESTART_COUNT:-0}} ]
        do sleep 0.1; done
        exit 1"""
    script = f"[ $SUPERVISED_NODE = 0 ] || {{ {other}; }}; exec {' '.join(work.job.command)}"
    work.job = work.jobs[0] = replace(work.job, command=("sh", "-c", script))
    work.submit()
    wait_for(lambda: len(work.events("requeued")) == 2)
    call("scancel", work.id)
    assert {row["why"] for row in work.events("requeued")} == {"crashed"}


def test_the_job_of_a_lost_node_is_requeued_on_another(chain, cluster):
    work = chain(steps=1500).submit().working()
    node = scheduler.find(work.id).nodes
    slurmd = int((cluster.directory / "run" / f"{node}.pid").read_text())
    os.kill(slurmd, signal.SIGKILL)
    try:
        wait_for(lambda: len(work.attempts()) == 2, 90)
        assert scheduler.find(work.id).nodes != node
    finally:
        kill(commands(work.job.directory))
        call("scancel", work.id)
        start(cluster, node)
        wait_for(lambda: "idle" in call("sinfo", "-h", "-N", "-n", node, "-p", "low", "-o", "%t"))
