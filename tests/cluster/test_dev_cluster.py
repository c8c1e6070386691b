"""Test the dev cluster, a real SLURM on this machine: it starts, runs jobs, leaves nothing."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.dev_cluster import daemons as dev_daemons
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import daemons, down, pid, start, up
from slurm.dev_cluster.directory import find
from slurm.dev_cluster.machine import BadInput
from tests.cluster.real import needs_slurm, wait_for
from tests.launcher import PROJECT

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster", numbered=True) / "c"
    made = Cluster(directory, nodes=4, gpus_per_node=2, cpus_per_node=2, grace=2)
    up(made)
    yield made
    down(directory)


@pytest.fixture
def tmp_path(tmp_path_factory):
    """Return a folder whose path is short enough for the sockets of a cluster."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def small(tmp_path):
    """Provide a second, smaller cluster, which is not yet up."""
    made = Cluster(tmp_path / "c", nodes=1, accounting=False)
    yield made
    down(made.directory)


def call(cluster, *command):
    done = subprocess.run(
        command, env=os.environ | cluster.environment, cwd=cluster.directory,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def command(*arguments, environment=None):
    return subprocess.run(
        [sys.executable, "-m", "slurm.dev_cluster", *arguments], cwd=PROJECT,
        env=os.environ | (environment or {}), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def state(cluster, job):
    return call(cluster, "squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def alive(name):
    """Return the ids of the processes that have this text in their command line."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if name.encode() in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
        except OSError:
            continue
    return found


@needs_slurm
def test_a_job_runs_on_all_nodes(cluster):
    output = call(cluster, "srun", "-N4", "printenv", "SLURMD_NODENAME")
    assert sorted(output.split()) == ["n1", "n2", "n3", "n4"]


@needs_slurm
@pytest.mark.parametrize("gpus, visible", [(1, "0"), (2, "0,1")])
def test_fake_gpus_are_allocated_to_jobs(cluster, gpus, visible):
    output = call(cluster, "srun", f"--gres=gpu:{gpus}", "printenv", "CUDA_VISIBLE_DEVICES")
    assert output == visible


@needs_slurm
def test_two_jobs_share_a_node(cluster):
    jobs = [
        call(cluster, "sbatch", "--parsable", "-w", "n1", "-o", "/dev/null", "--wrap", "sleep 300")
        for _ in range(2)
    ]
    wait_for(lambda: all(state(cluster, job) == "RUNNING" for job in jobs))
    call(cluster, "scancel", *jobs)
    wait_for(lambda: all(state(cluster, job) == "CANCELLED" for job in jobs))


@needs_slurm
def test_a_killed_controller_can_be_started_again(cluster):
    os.kill(pid(cluster, "slurmctld"), signal.SIGKILL)
    wait_for(lambda: pid(cluster, "slurmctld") is None)
    done = command("status", "--dir", str(cluster.directory))
    assert done.returncode == 1
    assert "not running: slurmctld" in done.stderr
    start(cluster, "slurmctld")
    assert call(cluster, "srun", "hostname")
    call(cluster, "scancel", "--me")  # the killed slurmctld may have forgotten a cancellation


@needs_slurm
def test_status_shows_nodes_partitions_and_jobs(cluster):
    job = call(
        cluster,
        "sbatch",
        "--parsable",
        "--hold",
        "--job-name=waiter",
        "-o",
        "/dev/null",
        "--wrap",
        "true",
    )
    seen = []

    def reported():
        """Return whether status lists all nodes together, which it does once all are idle."""
        seen[:] = [command("status", "--dir", str(cluster.directory))]
        words = ("low*", "high", "n[1-4]", "waiter")
        return seen[0].returncode == 0 and all(word in seen[0].stdout for word in words)

    wait_for(reported)
    call(cluster, "scancel", job)


@needs_slurm
def test_find_returns_the_cluster_that_was_started(cluster):
    assert find(cluster.directory) == cluster


@needs_slurm
def test_a_second_cluster_runs_beside_the_first_and_is_removed_alone(cluster, small):
    up(small)
    assert call(small, "srun", "printenv", "SLURM_CLUSTER_NAME") == small.name
    assert down(small.directory)
    assert all(pid(cluster, name) for name in daemons(cluster))


@needs_slurm
def test_down_leaves_no_process_and_no_directory(small):
    up(small)
    batch = ["sbatch", "--mem=10", "-o", "/dev/null"]
    call(small, *batch, "--wrap", "env -i sleep 98765 & srun sleep 98765")
    call(small, *batch, "--export=NONE", "--wrap", "sleep 98765")
    wait_for(lambda: len(alive("98765")) == 5)  # srun has two processes
    ids = [pid(small, name) for name in daemons(small)]
    os.kill(pid(small, "slurmctld"), signal.SIGKILL)
    os.kill(pid(small, "n1"), signal.SIGKILL)
    done = command("down", "--dir", str(small.directory))
    assert done.returncode == 0, done.stderr
    assert not small.directory.exists()
    assert not alive("98765")
    assert not alive(str(small.directory))
    dev_daemons._reap()
    assert not [number for number in ids if Path(f"/proc/{number}").exists()]


@needs_slurm
def test_down_finds_the_daemons_of_a_directory_that_vanished(small, tmp_path):
    up(small)
    small.directory.rename(tmp_path / "elsewhere")
    assert down(small.directory)
    assert not alive(str(small.directory))


@needs_slurm
def test_up_refuses_a_directory_in_which_a_cluster_runs(cluster):
    done = command("up", "--dir", str(cluster.directory))
    assert done.returncode == 2
    assert "is in" in done.stderr and "already" in done.stderr
    assert call(cluster, "srun", "hostname")


@needs_slurm
def test_a_daemon_that_fails_shows_its_log_and_leaves_nothing(tmp_path):
    (tmp_path / "slurmctld").write_text("#!/bin/sh\necho out of order; exit 1\n")
    (tmp_path / "slurmctld").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = command("up", "--no-accounting", "--dir", str(tmp_path / "c"), environment=path)
    assert done.returncode == 1
    assert "slurmctld ended" in done.stderr and "out of order" in done.stderr
    assert not (tmp_path / "c").exists()
    assert not alive(str(tmp_path))


@needs_slurm
def test_up_leaves_nothing_if_it_gets_a_signal(tmp_path):
    directory = tmp_path / "c"
    running = subprocess.Popen(
        [sys.executable, "-m", "slurm.dev_cluster", "up", "--dir", str(directory)],
        cwd=PROJECT, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stderr
    with running.stderr:
        while b"accounting" not in running.stderr.readline():
            assert running.poll() is None
        running.terminate()
        running.stderr.read()
    assert running.wait(30) == 128 + signal.SIGTERM
    assert not directory.exists()
    assert not alive(str(directory))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["upp"], "invalid choice: 'upp'"),
        ([], "required"),
        (["up", "--nodes=two"], "invalid int value: 'two'"),
        (["up", "--nodes=0"], "--nodes 0: must be from 1"),
        (["up", "--gpus-per-node=17"], "--gpus-per-node 17: must be from 0 to 16"),
        (["up", "--dir=/tmp/a b"], "SLURM cannot take this path"),
        (["down", f"--dir={PROJECT}"], "nothing was removed"),
        (["down", f"--dir={PROJECT / 'pyproject.toml'}"], "Not a directory"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_status_of_a_directory_without_a_cluster_is_an_error(tmp_path):
    done = command("status", "--dir", str(tmp_path))
    assert done.returncode == 1
    assert "no cluster in" in done.stderr


def test_down_does_nothing_in_a_directory_without_a_cluster(tmp_path):
    done = command("down", "--dir", str(tmp_path))
    assert done.returncode == 0
    assert tmp_path.exists()


def test_a_user_who_is_not_root_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BadInput, match="not root"):
        up(Cluster(tmp_path / "c"))


def test_missing_packages_are_reported_with_the_command_that_installs_them(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("slurm.dev_cluster.machine.search_path", lambda: str(tmp_path))
    with pytest.raises(BadInput, match=r"apt-get install .* munge slurm-wlm slurmdbd"):
        up(Cluster(tmp_path / "c"))


def test_a_relative_directory_means_the_same_cluster(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (
        dataclasses.replace(Cluster(tmp_path / "c"), directory=Path("c")).name
        == Cluster(tmp_path / "c").name
    )
