"""Words for what tests do with a real SLURM."""

import os
import subprocess
import time

import pytest

from slurm.dev_cluster import machine as dev_machine

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
