"""Timing that says when it is worth nothing."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from pipeline.measure import Timing
from pipeline.neighbours import Neighbours, watched
from pipeline.stages import latency

CORES = len(os.sched_getaffinity(0))
STEADY = {"fused/b1": Timing([1.0] * 20)}


@contextmanager
def busy_neighbours():
    """Keep every core busy; children count as neighbours until they have ended."""
    spin = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    processes = [subprocess.Popen(spin, stdout=subprocess.PIPE) for _ in range(CORES)]
    for process in processes:
        process.stdout.readline()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_busy_neighbour_is_seen():
    with busy_neighbours(), watched() as found:
        time.sleep(1)
    assert found.others > 0.5
    (reason,) = latency._noise(Neighbours(found.others), STEADY)
    assert reason.startswith("other processes used") and reason.endswith("% of these cores")


def test_our_own_work_is_none_of_a_neighbour():
    with watched() as found:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            pass
    assert found.others < 1 - 0.8 / CORES


@pytest.mark.parametrize(
    ("neighbours", "seconds", "words"),
    [
        (Neighbours(stolen=0.03), [1.0] * 20, "the host took 3% of their time away"),
        (Neighbours(), [1.0] * 10 + [1.2] * 10, "times drifted by 20%"),
        (Neighbours(), [1.0, 1.0, 1.0, 5.0] * 5, "one in ten took 5.0 times the median"),
    ],
)
def test_what_speaks_against_times_is_named(neighbours, seconds, words):
    (reason,) = latency._noise(neighbours, {**STEADY, "plain/b8": Timing(seconds)})
    assert words in reason


def test_quiet_and_steady_is_not_noisy():
    assert not list(latency._noise(Neighbours(others=0.04, stolen=0.01), STEADY))
