"""Test jobs under other policies of a site: gang scheduling, preemption by QOS, limits."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.records import stage_status
from slurm import preflight, scheduler
from tests.cluster.job_under_test import Chain, launched
from tests.cluster.real import call, needs_slurm, restart, wait_for
from tests.launcher import PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]


@pytest.fixture
def policy(cluster):
    """Return a function that sets lines of the cluster's configuration, restored afterwards."""
    plain = cluster.conf.read_text()

    def change(**settings):
        text = "".join(
            line + "\n" for line in plain.splitlines() if line.split("=")[0] not in settings
        )
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        restart(cluster, lines + text)
        preflight.preemption.cache_clear()

    yield change
    call("scancel", "--me")
    wait_for(lambda: not call("squeue", "--me", "--noheader"))
    restart(cluster, plain)
    preflight.preemption.cache_clear()


def test_a_job_that_gang_scheduling_suspends_continues_in_place(chain, policy):
    policy(PreemptMode="SUSPEND,GANG")
    call("scontrol", "update", "PartitionName=low", "PreemptMode=SUSPEND", "GraceTime=0")
    work = chain(steps=100).submit().working()
    urgent = ("--nodes=4", "--ntasks-per-node=2", "--mem=1", "--output=/dev/null", "--wrap=sleep 3")
    call("sbatch", "--partition=high", *urgent)
    queue = wait_for(lambda: (q := scheduler.user_jobs())[work.id].state == "SUSPENDED" and q)
    assert stage_status.of("train", work.job.directory, queue, {}).state == "suspended"
    wait_for(lambda: work.state() == "RUNNING")
    work.finished()
    assert len(work.attempts()) == 1
    assert not work.events("signal")


def test_a_job_that_a_higher_qos_cancels_has_a_successor(chain, policy):
    policy(PreemptType="preempt/qos", PreemptMode="CANCEL")
    call("sacctmgr", "-i", "add", "qos", "urgent", "preempt=normal", "priority=100")
    call("sacctmgr", "-i", "modify", "user", "root", "set", "qos+=urgent")
    call("scontrol", "update", "PartitionName=low", "PreemptMode=OFF", "GraceTime=0")
    work = chain(qos="normal", steps=100).submit().working()
    urgent = ("--qos=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    call("sbatch", "--partition=low", *urgent)
    work.finished().lost_nothing()
    first, second = (row["job"].split(".")[0] for row in work.attempts())
    assert [scheduler.end(first), scheduler.end(second)] == ["PREEMPTED", "COMPLETED"]


def test_a_sweep_respects_the_limits_of_arrays_and_of_slurmctld(policy, tmp_path):
    policy(MaxJobCount=len(scheduler.user_jobs()) + 9, MaxArraySize=2)
    longest = preflight.longest_array()
    assert longest == 2
    folders = [tmp_path / str(number) for number in range(5)]
    for folder in folders:
        folder.mkdir()
    chains = [Chain(folder, steps=2, seconds=0) for folder in folders]
    labels = {job.directory: [] for work in chains for job in work.jobs}
    submission = launched(tmp_path, 3, longest)
    with pytest.raises(scheduler.Refused, match="10 jobs are one launch too many"):
        submission.submit([job for work in chains for job in work.jobs], labels)
    assert not any(entry.active for entry in scheduler.user_jobs().values())
    submission.submit([job for work in chains[:3] for job in work.jobs], labels)
    assert len({id.split("_")[0] for id in submission.ids.values()}) == 4
    wait_for(lambda: all(work.next.finished.exists() for work in chains[:3]))


INSIDE = """
import sys
from pathlib import Path
from tests.cluster.job_under_test import Chain
import json
print(json.dumps(list(map(str, Chain(Path(sys.argv[1]), steps=2, seconds=0, nodes=2).submit().ids.values()))))
"""


def test_a_launch_inside_an_allocation_submits_jobs_outside_it(cluster, tmp_path):
    allocated = ("salloc", "--nodes=1", "--ntasks=1", "--time=3", "--quiet")
    done = subprocess.run(
        [*allocated, sys.executable, "-c", INSIDE, tmp_path],
        cwd=PROJECT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert wait_for(lambda: scheduler.find(first).nodes).count("n[") == 1  # two nodes, not salloc's
    scheduler.cancel([second, first])
