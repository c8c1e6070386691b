"""Whatever a cluster does to a job: it comes back, loses nothing, and what was cancelled stays so.

One row of the failure tables each, on a command that is like a training but light (`chain.py`); a
real training goes through them one after the other in test_training.py.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm import preflight, scheduler
from slurm.dev_cluster import start
from slurm.job import CANCELLED, EVENTS, Job, Resources, rows
from slurm.scheduler import Refused
from slurm.submit import Submission
from tests.cluster.real import call, needs_slurm, wait_for

pytestmark = [pytest.mark.cluster, needs_slurm]
COMMAND = Path(__file__).with_name("chain.py")
PROJECT = Path(__file__).parent.parent.parent


class Chain:
    """A job that runs `chain.py`, and one that waits for it."""

    def __init__(self, folder, steps=60, seconds=0.1, crash_at=None, time_limit=5, **resources):
        self.folder, self.steps = folder, steps
        more = [] if crash_at is None else ["--crash-at", str(crash_at)]
        resources = Resources(time_limit=time_limit, **{"signal_seconds": 10, **resources})
        self.job = self._job("work", steps, seconds, *more, resources=resources)
        self.next = self._job(
            "next", 1, 0, resources=Resources(time_limit=5), after=(self.job.directory,),
            needs=(self.job.finished,),
        )  # fmt: skip
        self.jobs = [self.job, self.next]

    def _job(self, name, steps, seconds, *more, **rest):
        directory = self.folder / name
        directory.mkdir()
        command = [sys.executable, COMMAND, directory, steps, seconds, *more]
        return Job(
            name=name, command=tuple(map(str, command)), directory=directory,
            finished=directory / "result.json", **rest,
        )  # fmt: skip

    def submit(self):
        submission = Submission(self.folder / "slurm", PROJECT, 64, 1000)
        submission.submit(self.jobs, {job.directory: ["a run"] for job in self.jobs})
        self.ids = submission.ids
        self.id, self.next_id = (submission.ids[job.directory] for job in self.jobs)
        return self

    def attempts(self):
        return [row for row in rows(self.job.directory / "attempts.jsonl") if "begun" in row]

    def stops(self):
        return [
            row["stopped"]
            for row in rows(self.job.directory / "attempts.jsonl")
            if "stopped" in row
        ]

    def step(self):
        try:
            return json.loads((self.job.directory / "progress.json").read_text())["done"]
        except FileNotFoundError:
            return 0

    def working(self, attempt=1, steps=3):
        """Wait until an attempt has done a few steps."""

        def done():
            begun = self.attempts()
            return len(begun) >= attempt and self.step() >= begun[attempt - 1]["begun"] + steps

        wait_for(done)
        return self

    def state(self, which=None):
        entry = scheduler.find(which or self.id)
        return entry.state if entry else None

    def events(self, name):
        return [row for row in rows(self.job.directory / EVENTS) if row["event"] == name]

    def finished(self, seconds=90):
        """Wait for the end; the result is that of an undisturbed run, and the dependent ran."""
        (self.job.directory / "hurry").touch()  # nothing will disturb it any more
        wait_for(self.next.finished.exists, seconds)
        digest = ""
        for step in range(self.steps):
            digest = hashlib.sha256(f"{digest} {step}".encode()).hexdigest()
        result = json.loads(self.job.finished.read_text())
        assert result == {"step": self.steps, "digest": digest}
        wait_for(lambda: self.state(self.next_id) == "COMPLETED")
        return self

    def lost_nothing(self):
        """Each attempt began where the one before had stopped."""
        begun = [row["begun"] for row in self.attempts()]
        assert begun == [0, *self.stops()], (begun, self.stops())
        return self


@pytest.fixture
def chain(cluster, tmp_path):
    return lambda **how: Chain(tmp_path, **how)


@pytest.fixture
def partition(cluster):
    """Return a way to change the preemptible partition, which is restored afterwards."""
    yield update
    update(GraceTime=cluster.grace, PreemptMode="REQUEUE")


def update(**facts):
    preflight.preemption.cache_clear()  # a launch asks once
    pairs = [f"{key}={value}" for key, value in facts.items()]
    call("scontrol", "update", "PartitionName=low", *pairs)


def preempt(tmp_path):
    """Take all nodes for a moment, from whoever may be preempted."""
    return call(
        "sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive",
        f"--output={tmp_path}/high.log", "--wrap=sleep 1",
    )  # fmt: skip


def commands(directory):
    """Return the living processes that work on a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(COMMAND).encode() in words and str(directory).encode() in words:
            found.append(int(process.name))
    return found


def test_what_nobody_disturbs_ends_well(chain):
    work = chain(steps=5).submit().finished().lost_nothing()
    assert [row["code"] for row in work.events("ended")] == [0]


@pytest.mark.parametrize("grace", [0, 10])
def test_a_preempted_job_comes_back(chain, partition, tmp_path, grace):
    partition(GraceTime=grace)
    work = chain().submit().working()
    preempt(tmp_path)
    work.finished().lost_nothing()
    assert len(work.attempts()) == 2
    assert {row["job"] for row in work.events("ended")} == {work.id}


def test_a_preempted_job_that_is_cancelled_has_a_successor(chain, partition, tmp_path):
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working()
    for attempt in (2, 3):  # the successor has one, too
        preempt(tmp_path)
        work.working(attempt)
    work.finished().lost_nothing()
    jobs = [row["job"].split(".")[0] for row in work.attempts()]
    assert len(set(jobs)) == 3
    assert [scheduler.end(job) for job in jobs] == ["PREEMPTED", "PREEMPTED", "COMPLETED"]
    wait_for(lambda: not [entry for entry in scheduler.mine().values() if entry.active])


def test_a_successor_does_not_revive_what_was_cancelled(chain, partition):
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working()
    call("scancel", work.id)
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    assert len(work.attempts()) == 1


def test_what_attaches_to_a_job_waits_for_its_successor_too(chain, partition, tmp_path):
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working()
    scheduler.cancel([work.next_id])
    again = work.submit()
    assert again.id == work.ids[work.job.directory]
    preempt(tmp_path)
    work.finished().lost_nothing()


def test_launched_again_where_only_a_useless_successor_is_left(chain, partition):
    """The first was cancelled by hand while its successor was held back."""
    partition(GraceTime=0, PreemptMode="CANCEL")
    work = chain().submit().working()
    (successor,) = [e for e in scheduler.mine().values() if e.active and work.id in e.after
                    and e.name == "work"]  # fmt: skip
    call("scontrol", "hold", successor.id)
    call("scancel", work.id)
    wait_for(lambda: work.state() == "CANCELLED")
    first = work.id
    work.submit()
    assert work.id not in (first, successor.id)
    work.finished()


def test_launched_while_slurm_takes_away_what_waited_for_a_cancelled_job(chain):
    work = chain().submit().working()
    call("scancel", work.id)
    work.submit().finished()


def test_the_signal_a_site_may_send_before_preemption_is_understood(chain, cluster, tmp_path):
    settings = cluster.conf.read_text()
    cluster.conf.write_text(f"{settings}SlurmctldParameters=preempt_send_user_signal\n")
    call("scontrol", "reconfigure")
    update(GraceTime=10)
    try:
        work = chain().submit().working()
        preempt(tmp_path)
        work.finished().lost_nothing()
        assert [row["signal"] for row in work.events("signal")] == ["SIGUSR2"]
    finally:
        cluster.conf.write_text(settings)
        call("scontrol", "reconfigure")


def test_a_requeue_from_outside_loses_nothing(chain):
    work = chain().submit().working()
    call("scontrol", "requeue", work.id)
    work.finished().lost_nothing()


def test_a_time_limit_met_twice_is_no_end(chain):
    work = chain(steps=600, signal_seconds=120).submit()
    for attempt in (1, 2):
        work.working(attempt)
        call("scontrol", "update", f"JobId={work.id}", "TimeLimit=2")  # the signal is due at once
        wait_for(lambda attempt=attempt: len(work.stops()) == attempt)
        wait_for(lambda: work.state() == "PENDING")
        call("scontrol", "update", f"JobId={work.id}", "TimeLimit=10")
    work.finished().lost_nothing()
    assert [row["why"] for row in work.events("requeued")] == ["time limit"] * 2


def test_a_cancelled_job_stays_dead_and_takes_its_dependents_along(chain):
    work = chain().submit().working()
    call("scancel", work.id)
    wait_for(lambda: work.state() == "CANCELLED")
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    time.sleep(8)  # longer than a requeue takes
    assert work.state() == "CANCELLED"
    assert not work.events("requeued")
    assert len(work.attempts()) == 1


def test_a_crashed_command_is_repeated(chain):
    work = chain().submit().working(steps=7)
    (pid,) = commands(work.job.directory)
    os.kill(pid, signal.SIGKILL)
    work.finished()
    assert [row["why"] for row in work.events("requeued")] == ["crashed"]
    assert work.attempts()[1]["begun"] == 5


def test_a_killed_supervisor_is_repeated(chain):
    work = chain().submit().working(steps=7)
    (pid,) = commands(work.job.directory)
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    work.finished()
    assert [row["why"] for row in work.events("requeued")] == ["crashed"]


def test_a_crash_loop_is_given_up_with_a_reason(chain):
    work = chain(crash_at=7)
    work.submit()
    wait_for(lambda: work.events("gave_up"), 120)
    wait_for(lambda: work.state() == "FAILED")
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    assert len(work.attempts()) == work.job.retries + 1
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
    """Return a way to take the controller away; it is back at the end."""
    controller = cluster.directory / "run" / "slurmctld.pid"

    def take():
        pid = int(controller.read_text())
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid))

    yield take
    if not alive(int(controller.read_text())):
        start(cluster, "slurmctld")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_controller_that_restarts_disturbs_nobody(chain, cluster, away):
    work = chain(steps=100).submit().working()
    away()
    time.sleep(3)
    start(cluster, "slurmctld")
    work.finished()
    assert len(work.attempts()) == 1


def test_a_controller_that_is_away_when_a_job_ends_is_waited_for(chain, cluster, away):
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
    work = chain().submit()
    wait_for(lambda: work.state() == "RUNNING")
    call("scontrol", "requeue", work.id)
    work.finished()


def test_nothing_is_submitted_twice(chain):
    work = chain().submit()
    before = work.ids
    assert work.submit().ids == before
    work.finished()


def test_launched_at_the_same_moment_it_is_submitted_once(chain):
    work = chain(steps=5)
    with ThreadPoolExecutor() as pool:
        submissions = [Submission(work.folder / "slurm", PROJECT, 64, 1000) for _ in range(3)]
        labels = {job.directory: ["a run"] for job in work.jobs}
        list(pool.map(lambda each: each.submit(work.jobs, labels), submissions))
    assert len({tuple(each.ids.values()) for each in submissions}) == 1
    work.id, work.next_id = submissions[0].ids.values()
    work.finished()


def test_launched_while_it_is_still_being_cancelled_it_comes_back(chain):
    work = chain().submit().working()
    (work.job.directory / CANCELLED).touch()
    scheduler.cancel([work.next_id, work.id])
    before = work.id
    assert work.submit().id != before
    work.finished()


def test_cancelled_where_slurm_did_not_answer_and_launched_again_it_goes_on(chain):
    work = chain().submit().working()
    (work.job.directory / CANCELLED).touch()
    assert work.submit().id == work.events("began")[0]["job"]
    work.finished()


def test_interrupted_while_it_submits_a_launcher_leaves_nothing(chain, tmp_path, monkeypatch):
    """A stand-in for sbatch submits, and then does not come to its end."""
    real = shutil.which("sbatch")
    slow = tmp_path / "bin" / "sbatch"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\n{real} "$@"\nsleep 60\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    work = chain()
    before = {id for id, entry in scheduler.mine().items() if entry.active}
    alarm = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(3)
    try:
        with pytest.raises(KeyboardInterrupt):
            work.submit()
    finally:
        signal.signal(signal.SIGALRM, alarm)
    wait_for(lambda: {id for id, entry in scheduler.mine().items() if entry.active} <= before)
    assert any(entry.name == "work" for id, entry in scheduler.mine().items() if id not in before)


def test_a_failing_setup_line_is_not_the_silent_end(chain):
    work = chain(setup=("set -e", "[ -e $SLURM_SUBMIT_DIR/no ]"))
    work.submit()
    wait_for(lambda: work.events("requeued"))
    call("scancel", work.id)
    assert [row["why"] for row in work.events("requeued")] == ["crashed"]


def test_a_refusal_in_the_middle_takes_back_what_was_submitted(chain):
    work = chain()
    impossible = Resources(time_limit=5, partition="nowhere")
    work.jobs[1] = Job(**{**vars(work.next), "resources": impossible})
    with pytest.raises(Refused, match="partition"):
        work.submit()
    ids = [row["id"] for row in rows(work.job.directory / "jobs.jsonl") if "id" in row]
    wait_for(lambda: work.state(ids[0]) == "CANCELLED")


def test_a_launcher_that_died_before_it_noted_the_id_submits_nothing_twice(chain):
    work = chain().submit()
    path = work.job.directory / "jobs.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")  # only the intent
    assert work.submit().id == work.ids[work.job.directory]
    assert len(scheduler.mine()) == len({*scheduler.mine()})
    work.finished()


@pytest.fixture
def array(cluster, tmp_path):
    """Return the submission of several chains of the same kind as arrays."""

    def submit(count, steps, seconds):
        chains = []
        for number in range(count):
            folder = tmp_path / str(number)
            folder.mkdir()
            chains.append(Chain(folder, steps=steps, seconds=seconds))
        submission = Submission(tmp_path / "slurm", PROJECT, parallel=count, longest=1000)
        jobs = [job for work in chains for job in work.jobs]
        submission.submit(jobs, {job.directory: [] for job in jobs})
        assert len({id.split("_")[0] for id in submission.ids.values()}) == 2
        for work in chains:
            work.id, work.next_id = (submission.ids[job.directory] for job in work.jobs)
            assert work.id.split("_")[1] == work.next_id.split("_")[1]
        return chains

    return submit


def test_alike_jobs_become_one_array_and_wait_one_for_one(array):
    for work in array(3, steps=3, seconds=0):
        work.finished()


def test_one_of_an_array_is_repeated_alone(array):
    """The last has the array's own number for its id."""
    chains = array(3, steps=60, seconds=0.1)
    for work in chains:
        work.working(steps=7)
    for work in (chains[0], chains[-1]):
        (pid,) = commands(work.job.directory)
        os.kill(pid, signal.SIGKILL)
    for work in chains:
        work.finished()
    assert [len(work.attempts()) for work in chains] == [2, 1, 2]


def test_names_and_comments_of_other_jobs_may_hold_anything(chain):
    strange = ("--hold", "--job-name=a|b|c", "--comment=one\ntwo|three", "--wrap=true")
    other = call("sbatch", "--parsable", "--output=/dev/null", *strange)
    chain(steps=5).submit().finished()
    call("scancel", other)


def test_a_crash_beside_a_node_that_saves_is_counted(chain):
    """SLURM signals the other nodes when one fails; that is no interruption to repeat for ever."""
    work = chain(nodes=2)
    script = f"[ $NODE_RANK = 0 ] || exit 1; exec {' '.join(work.job.command)}"
    work.job = Job(**{**vars(work.job), "command": ("sh", "-c", script)})
    work.jobs[0] = work.job
    work.submit()
    wait_for(lambda: len(work.events("requeued")) == 2)
    call("scancel", work.id)
    assert {row["why"] for row in work.events("requeued")} == {"crashed"}


def test_a_lost_node_brings_the_job_back_elsewhere(chain, cluster):
    work = chain(steps=1500).submit().working()
    node = scheduler.find(work.id).nodes
    slurmd = int((cluster.directory / "run" / f"{node}.pid").read_text())
    os.kill(slurmd, signal.SIGKILL)
    try:
        wait_for(lambda: len(work.attempts()) == 2, 90)
        assert scheduler.find(work.id).nodes != node
    finally:
        for pid in commands(work.job.directory):
            os.kill(pid, signal.SIGKILL)
        call("scancel", work.id)
        start(cluster, node)
        wait_for(lambda: "idle" in call("sinfo", "-h", "-N", "-n", node, "-p", "low", "-o", "%t"))
