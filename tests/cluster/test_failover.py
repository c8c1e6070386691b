"""Test that jobs are submitted once if slurmctld goes away or its backup takes over."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from slurm import sbatch, scheduler
from slurm.dev_cluster.daemons import OWNER, start
from slurm.records import JOBS, rows
from tests.cluster.job_under_test import launched
from tests.cluster.real import answers, call, end, needs_slurm, restart, wait_for

pytestmark = [pytest.mark.cluster, needs_slurm]

PAIR = "SlurmctldHost=backup(127.0.0.2)\nCommunicationParameters=NoCtldInAddrAny\n"
OTHER = "hostname backup && mount --bind {folder}/hosts /etc/hosts && exec slurmctld -D"


@pytest.fixture
def backup(cluster):
    """Start a second slurmctld, which takes over at `scontrol takeover`."""
    plain = cluster.conf.read_text()
    folder = cluster.directory / "backup"
    folder.mkdir(exist_ok=True)
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + "127.0.0.2 backup\n")
    first = next(line for line in plain.splitlines() if line.startswith("SlurmctldHost="))
    pair = plain.replace(f"{first}\n", f"{first}\n{PAIR}")
    own = folder / "slurm.conf"
    own.write_text(pair.replace("/run/slurmctld.pid", "/run/backup.pid"))
    restart(cluster, pair)
    call("scontrol", "reconfigure")  # the nodes read the new configuration
    other = subprocess.Popen(
        ["unshare", "--uts", "--mount", "sh", "-c", OTHER.format(folder=folder)],
        env={**os.environ, "SLURM_CONF": str(own), OWNER: cluster.name}, cwd=folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: "backup) at backup is UP" in call("scontrol", "ping"))
    yield
    other.kill()
    other.wait()
    restart(cluster, plain)
    call("scontrol", "reconfigure")


def submit_through(work, away, after=1):
    """Submit both jobs of a chain; call `away` once, when `after` of them are submitted."""
    submission = launched(work.folder)
    submitted = []

    def hand_over(batch, labels, through=submission._hand_over):
        through(batch, labels)
        submitted.append(batch)
        if len(submitted) == after:
            away()

    submission._hand_over = hand_over
    submission.submit(work.jobs, {job.directory: ["a run"] for job in work.jobs})
    work.ids = submission.ids
    work.id, work.next_id = (submission.ids[job.directory] for job in work.jobs)


def each_once(work):
    """Check that each job of a launch is in SLURM exactly once."""
    for directory, id in work.ids.items():
        marks = {row["token"] for row in rows(directory / JOBS) if "token" in row}
        queue = scheduler.patient(scheduler.user_jobs)
        known = [e.id for e in queue.values() if e.state != "CANCELLED" and e.comment in marks]
        assert known == [id]


@pytest.fixture
def unanswered(monkeypatch):
    """Return a function that sets what happens after a call of sbatch that got no answer."""

    def then(does):
        pauses = iter([does])
        pause = SimpleNamespace(sleep=lambda seconds: next(pauses, lambda: time.sleep(seconds))())
        monkeypatch.setattr(sbatch, "time", pause)

    return then


def test_each_job_is_submitted_once_if_slurmctld_restarts(chain, cluster, unanswered):
    work = chain(steps=2, seconds=0)

    def back():
        start(cluster, "slurmctld")
        wait_for(answers)

    unanswered(back)
    submit_through(work, lambda: end(cluster, "slurmctld"))
    each_once(work)
    work.finished(180)  # an srun without an answer from slurmctld waits before it retries


@pytest.mark.parametrize("level", [1, 2])
def test_jobs_that_a_killed_slurmctld_forgot_are_submitted_again(
    chain, cluster, level, tmp_path, capsys
):
    """slurmctld, killed with SIGKILL, forgets the jobs that it accepted after its last state save.

    With level 1 it forgets one job, with level 2 both.
    """
    work = chain(sbatch={"hold": True})  # no job starts
    state, kept = cluster.directory / "state", tmp_path / "state"
    shutil.copytree(state, kept)

    def away():
        end(cluster, "slurmctld", signal.SIGKILL)
        shutil.rmtree(state)
        shutil.copytree(kept, state)
        start(cluster, "slurmctld")
        wait_for(answers)

    submit_through(work, away, level)
    each_once(work)
    assert "forgot" in capsys.readouterr().out
    scheduler.cancel([work.next_id, work.id])


@pytest.mark.slow
def test_each_job_is_submitted_once_if_the_backup_takes_over(chain, cluster, backup, unanswered):
    work = chain(steps=2, seconds=0)

    def take_over():
        call("scontrol", "takeover")
        wait_for(answers)

    unanswered(take_over)
    submit_through(work, lambda: end(cluster, "slurmctld"))
    assert "(primary) at" in (output := call("scontrol", "ping")) and "is DOWN" in output
    each_once(work)
    scheduler.cancel([work.next_id, work.id])


@pytest.mark.slow
def test_each_job_is_submitted_once_if_the_backup_replaces_a_killed_slurmctld(
    chain, cluster, backup, unanswered
):
    work = chain(sbatch={"hold": True})
    unanswered(lambda: call("scontrol", "takeover") and wait_for(answers))
    submit_through(work, lambda: end(cluster, "slurmctld", signal.SIGKILL))
    each_once(work)
    scheduler.cancel([work.next_id, work.id])
