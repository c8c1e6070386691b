"""Where processes on several nodes meet."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.mark.parametrize(("other", "met"), [("7.0", True), ("7.1", False), ("8.0", False)])
def test_who_of_another_attempt_came_to_the_same_port_is_not_met(other, met):
    distributed = pytest.importorskip("pipeline.contract.world")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def enter(job, rank):
        here = distributed.World(rank=rank, world_size=2, device="cpu", hang_timeout=100)
        return distributed._store(f"tcp://127.0.0.1:{port}/{job}", here)

    with ThreadPoolExecutor() as pool:
        ours, theirs = pool.map(enter, ("7.0", other), (0, 1))
    theirs.set("rank 1", "its address")
    assert ours.check(["rank 1"]) == met
