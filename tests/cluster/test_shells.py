"""Test that SLURM's variables in a user's shell lose no job and make none be submitted twice."""

import pytest

from slurm import scheduler
from tests.cluster.job_under_test import preempt
from tests.cluster.real import call, needs_slurm

pytestmark = [pytest.mark.cluster, needs_slurm]

HOSTILE = {
    "SQUEUE_PARTITION": "high",  # hid preempted jobs, which were lost
    "SQUEUE_STATES": "PENDING",
    "SLURM_TIME_FORMAT": "relative",  # hid running jobs, which were submitted twice
    "SCANCEL_STATE": "PENDING",
    "SACCT_FORMAT": "Elapsed",
    "SINFO_PARTITION": "high",
    "SCONTROL_FUTURE": "1",
    "SLURM_DEBUG_FLAGS": "Protocol",
}


def test_a_job_is_found_and_requeued_from_a_shell_full_of_options(chain, tmp_path, monkeypatch):
    work = chain(sbatch={"export": "NONE"})  # as a site or SBATCH_EXPORT may set it
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    work.submit().working()
    first = work.ids
    assert work.submit().ids == first
    with monkeypatch.context() as plain:
        for name in HOSTILE:
            plain.delenv(name)
        preempt(tmp_path)
    work.finished().lost_nothing()
    assert len(work.attempts()) == 2


def test_a_job_is_cancelled_from_a_shell_full_of_options(chain, monkeypatch):
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    work = chain().submit().working()
    scheduler.cancel([work.next_id, work.id])
    for name in HOSTILE:
        monkeypatch.delenv(name)
    assert work.state() in ("COMPLETING", "CANCELLED")
    assert not [id for id in call("squeue", "--me", "-h", "-t", "R,PD", "-o", "%i").split()
                if id in work.ids.values()]  # fmt: skip
