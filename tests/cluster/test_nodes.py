"""Nodes that are not as they should be: jobs survive them, and the user is told which and why."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.records import stage_status
from slurm import scheduler
from slurm.dev_cluster.daemons import start
from slurm.records import CANCELLED
from tests.cluster.job_under_test import commands
from tests.cluster.real import call, end, idle, needs_slurm, wait_for

pytestmark = [pytest.mark.cluster, needs_slurm]

CONFIGURATION = """
Prolog={directory}/prolog
RequeueExit=1-4
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=task=1
"""
GREEDY = "import time; held = bytearray(300 * 2**20); time.sleep(60)"


@pytest.fixture(scope="module")
def harsh(cluster):
    """Return the cluster with a prolog that can fail, memory limits, and jobs that are repeated."""
    prolog = cluster.directory / "prolog"
    prolog.write_text(f"#!/bin/sh\n[ ! -e {cluster.directory}/fail ]\n")
    prolog.chmod(0o755)
    plain = cluster.conf.read_text()
    cluster.conf.write_text(plain + CONFIGURATION.format(directory=cluster.directory))
    call("scontrol", "reconfigure")
    yield cluster
    cluster.conf.write_text(plain)
    call("scontrol", "reconfigure")


def standing(job):
    queue, _ = stage_status.queued()
    return stage_status.look("train", job.directory, queue, {})


def test_a_failed_prolog_holds_the_job_and_status_says_how_to_go_on(chain, harsh):
    fail = harsh.directory / "fail"
    fail.touch()
    work = chain(steps=5).submit()
    told = wait_for(lambda: (it := standing(work.job)).state == "held" and it)
    assert told.why.endswith(f"scontrol release {work.id}")
    assert work.submit().id == work.id
    fail.unlink()
    bad = call("sinfo", "-h", "-N", "-t", "drain", "-o", "%N").split()[0]
    call("scontrol", "update", f"NodeName={bad}", "State=RESUME")
    call("scontrol", "release", work.id)
    work.finished().lost_nothing()


def test_who_needs_more_memory_than_it_has_is_told_so_and_not_repeated_for_ever(chain, harsh):
    work = chain(memory=0.1)
    greedy = replace(work.job, retries=0, command=(sys.executable, "-c", GREEDY))
    work.job = work.jobs[0] = greedy
    work.submit()
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    told = standing(work.job)
    assert told.state == "failed"
    assert "more memory than 0.1 GB; set cluster.memory" in told.why
    assert scheduler.find(work.id).state == "FAILED"  # RequeueExit is for other exit codes
    assert len(work.events("began")) == 1


def test_what_was_cancelled_is_not_repeated_for_its_exit_code(chain, harsh):
    work = chain().submit().working()
    (work.job.directory / CANCELLED).touch()
    (pid,) = commands(work.job.directory)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: work.state() == "FAILED")
    assert len(work.attempts()) == 1


def test_a_special_exit_is_told_and_what_gets_no_environment_goes_on(chain):
    work = chain(sbatch={"export": "NONE"}).submit().working()
    call("scontrol", "requeuehold", "State=SpecialExit", work.id)
    told = wait_for(lambda: (it := standing(work.job)).state == "held" and it)
    assert f"scontrol release {work.id}" in told.why
    call("scontrol", "release", work.id)
    work.finished().lost_nothing()


@pytest.fixture
def blind(cluster, tmp_path):
    """Return the name of a node that does not see the directory of this test."""
    name = cluster.node_names[-1]
    end(cluster, name)
    hide = f"mount -t tmpfs none {tmp_path} && exec slurmd -D -N {name}"
    slurmd = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", hide], cwd=cluster.directory, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: idle(name))
    assert slurmd.poll() is None
    yield name
    slurmd.kill()
    slurmd.wait()
    start(cluster, name)
    wait_for(lambda: idle(name))


def test_a_node_that_does_not_see_the_root_is_named(chain, blind):
    work = chain(sbatch={"nodelist": blind}).submit()
    # from 24.11 SLURM makes missing directories of logs there, and submitit waits for a minute
    told = wait_for(lambda: (it := standing(work.job)).state == "failed" and it, 150)
    assert re.search(f"nothing came from {blind}: do they see {work.job.directory}", told.why)
