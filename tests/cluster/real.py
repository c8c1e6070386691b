"""Words for what tests do with a real SLURM."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from slurm import scheduler, site
from slurm.dev_cluster import machine as dev_machine
from slurm.dev_cluster.daemons import pid, start

ENABLE = "as root: python -m slurm.dev_cluster up --install && python -m slurm.dev_cluster down"
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or bool(dev_machine.missing()), reason=f"no SLURM here; {ENABLE}"
)


def call(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(condition, seconds=60.0):
    """Return what `condition` returns, once that is true of it."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.2)
    return value


def end(cluster, daemon, number=signal.SIGTERM):
    """End a daemon of a cluster, and wait until it is gone."""
    process = pid(cluster, daemon)
    if process:
        os.kill(process, number)
        wait_for(lambda: not alive(process))


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def restart(cluster, configuration):
    """Have the controller begin anew, with another configuration."""
    cluster.conf.write_text(configuration)
    end(cluster, "slurmctld")
    start(cluster, "slurmctld")
    wait_for(answers)


def answers():
    try:
        return site.partitions()
    except scheduler.Unreachable:
        return False


def idle(*nodes):
    """Whether the controller has nodes for idle."""
    told = call("sinfo", "-h", "-N", "-n", ",".join(nodes), "-p", "low", "-o", "%T").split()
    return told == ["idle"] * len(nodes)
