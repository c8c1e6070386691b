"""Query and disturb the daemons and jobs of a real SLURM."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from slurm import scheduler, site
from slurm.dev_cluster import machine as dev_machine
from slurm.dev_cluster.daemons import OWNER, pid, start

ENABLE = "as root: python -m slurm.dev_cluster up --install && python -m slurm.dev_cluster down"
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or bool(dev_machine.missing()), reason=f"no SLURM here; {ENABLE}"
)


def call(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(condition, seconds=60.0):
    """Return the value of `condition` as soon as it is true; fail after `seconds`."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"the condition is still false after {seconds} s"
        time.sleep(0.2)
    return value


def kill(numbers, number=signal.SIGKILL):
    """Send a signal to processes; skip those that have ended."""
    for process in numbers:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def end(cluster, daemon, number=signal.SIGTERM):
    """End a daemon of a cluster and wait for it; kill the daemon if it does not end in time.

    A busy slurmctld may take more than a minute, so systemd, too, kills it after some time.
    """
    if not (process := pid(cluster, daemon)):
        return
    os.kill(process, number)
    try:
        wait_for(lambda: not alive(process))
    except AssertionError:
        kill([process])
        wait_for(lambda: not alive(process))


def jobs(cluster):
    """Return the processes of a cluster's jobs: process id, command line, environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            pairs = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            seen = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if seen.get(OWNER) == cluster.name and "SLURM_JOB_ID" in seen:
                found.append((int(process.name), words, seen))
    return found


def power_cut(cluster, node):
    """Kill the slurmd of a node, the processes of its jobs, and the parents of these."""
    here = [number for number, _, seen in jobs(cluster) if seen.get("SLURMD_NODENAME") == node]
    above = {parent(number) for number in here} - {1}
    kill(filter(None, [pid(cluster, node), *above, *here]))


def boot(cluster, node):
    """Start the slurmd of a node with the option that reports a reboot."""
    subprocess.Popen(
        ["slurmd", "-D", "-b", "-N", node], cwd=cluster.directory, start_new_session=True,
        env=os.environ | {OWNER: cluster.name}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def parent(process):
    """Return the process id of a process's parent; 1 if the process is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 1


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def configure(cluster, configuration):
    """Replace a cluster's configuration in one step: a daemon that reads half a file ends."""
    new = cluster.conf.with_suffix(".new")
    new.write_text(configuration)
    new.replace(cluster.conf)


def restart(cluster, configuration):
    """Restart slurmctld with another configuration."""
    configure(cluster, configuration)
    end(cluster, "slurmctld")
    start(cluster, "slurmctld")
    wait_for(answers)


def answers():
    try:
        return site.partitions()
    except scheduler.Unreachable:
        return False


def idle(*nodes):
    """Return whether slurmctld reports these nodes as idle."""
    output = call("sinfo", "-h", "-N", "-n", ",".join(nodes), "-p", "low", "-o", "%T").split()
    return output == ["idle"] * len(nodes)
