"""Test that jobs survive faulty nodes, and that the user learns which node failed and why."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.records import stage_status
from slurm import scheduler
from slurm.dev_cluster.daemons import start
from slurm.records import CANCELLED
from tests.cluster.job_under_test import commands, preempt
from tests.cluster.real import (
    boot,
    call,
    configure,
    end,
    idle,
    needs_slurm,
    power_cut,
    restart,
    wait_for,
)  # fmt: skip
from tests.launcher import PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]

CONFIGURATION = """
Prolog={directory}/prolog
RequeueExit=1-4
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=task=1
"""
GREEDY = "import time; held = bytearray(300 * 2**20); time.sleep(60)"


@pytest.fixture
def harsh(cluster):
    """Provide the cluster with a prolog that can fail, memory limits, and RequeueExit."""
    prolog = cluster.directory / "prolog"
    prolog.write_text(f"#!/bin/sh\n[ ! -e {cluster.directory}/fail ]\n")
    prolog.chmod(0o755)
    plain = cluster.conf.read_text()
    configure(cluster, plain + CONFIGURATION.format(directory=cluster.directory))
    call("scontrol", "reconfigure")
    yield cluster
    configure(cluster, plain)
    call("scontrol", "reconfigure")


def status_of(job):
    queue, _ = stage_status.queued()
    return stage_status.of("train", job.directory, queue, {})


def test_a_failed_prolog_holds_the_job_and_status_says_how_to_go_on(chain, harsh):
    fail = harsh.directory / "fail"
    fail.touch()
    work = chain(steps=5).submit()
    status = wait_for(lambda: (it := status_of(work.job)).state == "held" and it)
    assert status.why.endswith(f"scontrol release {work.id}")
    assert work.submit().id == work.id
    fail.unlink()
    bad = call("sinfo", "-h", "-N", "-t", "drain", "-o", "%N").split()[0]
    call("scontrol", "update", f"NodeName={bad}", "State=RESUME")
    call("scontrol", "release", work.id)
    work.finished().lost_nothing()


def test_a_job_that_exceeds_its_memory_fails_with_the_cure_and_is_not_requeued(chain, harsh):
    work = chain(memory=0.1)
    greedy = replace(work.job, retries=0, command=(sys.executable, "-c", GREEDY))
    work.job = work.jobs[0] = greedy
    work.submit()
    wait_for(lambda: work.state(work.next_id) == "CANCELLED")
    status = status_of(work.job)
    assert status.state == "failed"
    assert "more memory than 0.1 GB; set cluster.memory" in status.why
    assert scheduler.find(work.id).state == "FAILED"  # RequeueExit is for other exit codes
    assert len(work.events("began")) == 1


def test_a_dry_run_shows_the_exit_code_that_the_submitted_script_has(harsh, tmp_path):
    def traps(script):
        return [line for line in script.splitlines() if line.startswith("trap ")]

    launch = [sys.executable, "-m", "pipeline.launch", f"root={tmp_path}", "stage=prep",
              "cluster=slurm", "cluster.cpus_per_process=1", "+cluster.sbatch.hold=true"]  # fmt: skip
    shown = subprocess.check_output([*launch, "dry_run=true"], cwd=PROJECT, text=True)
    subprocess.run(launch, cwd=PROJECT, check=True)
    (held,) = [entry.id for entry in scheduler.user_jobs().values() if entry.held]
    submitted = call("scontrol", "write", "batch_script", held, "-")
    scheduler.cancel([held])
    assert traps(shown) == traps(submitted)
    assert "code=5;" in traps(shown)[0]


def test_a_cancelled_job_is_not_requeued_because_of_its_exit_code(chain, harsh):
    work = chain().submit().working()
    (work.job.directory / CANCELLED).touch()
    (pid,) = commands(work.job.directory)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: work.state() == "FAILED")
    assert len(work.attempts()) == 1


def test_a_job_without_the_users_environment_continues_after_a_special_exit(chain):
    work = chain(sbatch={"export": "NONE"}).submit().working()
    call("scontrol", "requeuehold", "State=SpecialExit", work.id)
    status = wait_for(lambda: (it := status_of(work.job)).state == "held" and it)
    assert f"scontrol release {work.id}" in status.why
    call("scontrol", "release", work.id)
    work.finished().lost_nothing()


@pytest.fixture(params=["", "slurm"])
def blind(cluster, tmp_path, request):
    """Provide the name of a node that does not see the directory of this test.

    On this node the directory is empty, or has an empty directory for logs, which SLURM creates
    from version 24.11.
    """
    name = cluster.node_names[-1]
    end(cluster, name)
    logs = tmp_path / request.param
    hide = f"mount -t tmpfs none {tmp_path} && mkdir -p {logs} && exec slurmd -D -N {name}"
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
    # from 24.11, SLURM creates missing directories of logs, and submitit waits for a minute
    status = wait_for(lambda: (it := status_of(work.job)).state == "failed" and it, 150)
    assert re.search(f"nothing came from {blind}: do they see {work.job.directory}", status.why)


def test_a_job_that_failed_on_a_blind_node_is_not_requeued_because_of_its_exit_code(
    chain, harsh, blind
):
    work = chain(sbatch={"nodelist": blind}).submit()
    wait_for(lambda: not scheduler.find(work.id).active or scheduler.find(work.id).restarts, 150)
    entry = scheduler.find(work.id)
    assert (entry.state, entry.restarts) == ("FAILED", 0)
    assert status_of(work.job).state == "failed"


@pytest.mark.slow
def test_the_job_of_a_node_that_reboots_is_requeued(chain, cluster):
    work = chain().submit().working()
    node = scheduler.find(work.id).nodes
    time.sleep(21)  # SLURM does not look for a job that has just started
    power_cut(cluster, node)
    boot(cluster, node)
    work.finished()
    assert len(work.attempts()) == 2


@pytest.fixture
def unlike(cluster):
    """Provide the names of two nodes, of which one has more CPUs and another feature."""
    plain = cluster.conf.read_text()
    one, other = cluster.node_names[-2:]
    line = next(line for line in plain.splitlines() if line.startswith(f"NodeName={other} "))
    restart(cluster, plain.replace(line, line.replace("CPUs=2", "CPUs=6") + " Features=new"))
    yield one, other
    restart(cluster, plain)


def test_nodes_with_different_cpus_work_together(chain, unlike):
    nodes = {"nodelist": ",".join(unlike)}
    work = chain(nodes=2, cpus_per_node=2, memory=0.1, sbatch=nodes, steps=5).submit()
    wait_for(work.job.finished.exists)
    (began,) = work.events("began")
    assert began["nodes"] == list(unlike)
    assert [row["node"] for row in work.events("joined")] == [1]
    wait_for(lambda: work.state(work.next_id) == "COMPLETED")


FAKE = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.mark.skipif(not FAKE, reason="no faketime here; apt-get install faketime")
def test_a_wrong_clock_of_a_node_does_not_turn_an_interruption_into_a_crash(chain, tmp_path):
    work = chain(setup=(f"export LD_PRELOAD={FAKE} FAKETIME=-600",))
    work.submit().working()
    preempt(tmp_path)
    work.finished().lost_nothing()
    assert [row["why"] for row in work.events("requeued")] == ["interrupted"]


@pytest.fixture
def full(tmp_path, monkeypatch):
    """Set HOME to a folder on a full disk."""
    home = tmp_path / "home"
    home.mkdir()
    call("mount", "-t", "tmpfs", "-o", "size=64k", "none", home)
    with suppress(OSError), (home / "more").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        monkeypatch.delenv(name)
    yield home
    call("umount", "--lazy", home)


@pytest.mark.slow
def test_a_run_needs_no_free_space_in_the_home_directory(cluster, full, tmp_path):
    settings = ("cluster=slurm", "cluster.cpus_per_process=1", "stage.run=[prep,train]",
                "train.epochs=1", "model.widths=[[8],[16]]", "name=run")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.launch", f"root={tmp_path}/o", *settings], cwd=PROJECT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_for((tmp_path / "o" / "runs" / "run" / "train" / "result.json").exists, 300)
    assert [path.name for path in full.iterdir()] == ["more"]
