"""Nodes that are not as they should be: jobs survive them, and the user is told which and why."""

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
    """Return the cluster with a prolog that can fail, memory limits, and jobs that are repeated."""
    prolog = cluster.directory / "prolog"
    prolog.write_text(f"#!/bin/sh\n[ ! -e {cluster.directory}/fail ]\n")
    prolog.chmod(0o755)
    plain = cluster.conf.read_text()
    configure(cluster, plain + CONFIGURATION.format(directory=cluster.directory))
    call("scontrol", "reconfigure")
    yield cluster
    configure(cluster, plain)
    call("scontrol", "reconfigure")


def standing(job):
    queue, _ = stage_status.queued()
    return stage_status.of("train", job.directory, queue, {})


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


def test_a_dry_run_shows_the_exit_code_that_the_submitted_script_has(harsh, tmp_path):
    def traps(script):
        return [line for line in script.splitlines() if line.startswith("trap ")]

    launch = [sys.executable, "-m", "pipeline.launch", f"root={tmp_path}", "stage=prep",
              "cluster=slurm", "cluster.cpus_per_process=1", "+cluster.sbatch.hold=true"]  # fmt: skip
    shown = subprocess.check_output([*launch, "dry_run=true"], cwd=PROJECT, text=True)
    subprocess.run(launch, cwd=PROJECT, check=True)
    (held,) = [entry.id for entry in scheduler.mine().values() if entry.held]
    submitted = call("scontrol", "write", "batch_script", held, "-")
    scheduler.cancel([held])
    assert traps(shown) == traps(submitted)
    assert "code=5;" in traps(shown)[0]


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


@pytest.fixture(params=["", "slurm"])
def blind(cluster, tmp_path, request):
    """Return the name of a node that does not see the directory of this test.

    There may be an empty directory for logs, as SLURM makes one from 24.11.
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
    # from 24.11 SLURM makes missing directories of logs there, and submitit waits for a minute
    told = wait_for(lambda: (it := standing(work.job)).state == "failed" and it, 150)
    assert re.search(f"nothing came from {blind}: do they see {work.job.directory}", told.why)


def test_a_job_that_a_blind_node_fails_is_not_repeated_for_its_exit_code(chain, harsh, blind):
    work = chain(sbatch={"nodelist": blind}).submit()
    wait_for(lambda: not scheduler.find(work.id).active or scheduler.find(work.id).restarts, 150)
    entry = scheduler.find(work.id)
    assert (entry.state, entry.restarts) == ("FAILED", 0)
    assert standing(work.job).state == "failed"


@pytest.mark.slow
def test_a_node_that_reboots_gives_its_job_back(chain, cluster):
    work = chain().submit().working()
    node = scheduler.find(work.id).nodes
    time.sleep(21)  # what has just started, SLURM does not miss
    power_cut(cluster, node)
    boot(cluster, node)
    work.finished()
    assert len(work.attempts()) == 2


@pytest.fixture
def unlike(cluster):
    """Return the names of two nodes, of which one has more CPUs and another feature."""
    plain = cluster.conf.read_text()
    one, other = cluster.node_names[-2:]
    line = next(line for line in plain.splitlines() if line.startswith(f"NodeName={other} "))
    restart(cluster, plain.replace(line, line.replace("CPUs=2", "CPUs=6") + " Features=new"))
    yield one, other
    restart(cluster, plain)


def test_nodes_that_are_not_alike_work_together(chain, unlike):
    nodes = {"nodelist": ",".join(unlike)}
    work = chain(nodes=2, cpus_per_node=2, memory=0.1, sbatch=nodes, steps=5).submit()
    wait_for(work.job.finished.exists)
    (began,) = work.events("began")
    assert began["nodes"] == list(unlike)
    assert [row["node"] for row in work.events("joined")] == [1]
    wait_for(lambda: work.state(work.next_id) == "COMPLETED")


FAKE = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.mark.skipif(not FAKE, reason="no faketime here; apt-get install faketime")
def test_a_node_whose_clock_is_wrong_tells_an_interruption_from_a_crash(chain, tmp_path):
    work = chain(setup=(f"export LD_PRELOAD={FAKE} FAKETIME=-600",))
    work.submit().working()
    preempt(tmp_path)
    work.finished().lost_nothing()
    assert [row["why"] for row in work.events("requeued")] == ["interrupted"]


@pytest.fixture
def full(tmp_path, monkeypatch):
    """Have a home on a disk of its own, on which nothing more fits."""
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
def test_a_home_without_room_is_not_needed(cluster, full, tmp_path):
    settings = ("cluster=slurm", "cluster.cpus_per_process=1", "stage.run=[prep,train]",
                "train.epochs=1", "model.widths=[[8],[16]]", "name=run")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.launch", f"root={tmp_path}/o", *settings], cwd=PROJECT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_for((tmp_path / "o" / "runs" / "run" / "train" / "result.json").exists, 300)
    assert [path.name for path in full.iterdir()] == ["more"]
