"""Test `contract.world`: processes of one attempt, on several nodes, meet each other only."""

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from slurm import supervise
from slurm.supervise import Allocation


@pytest.mark.parametrize(("other", "met"), [("7.0", True), ("7.1", False), ("8.0", False)])
def test_a_process_of_another_attempt_at_the_same_port_is_not_met(other, met):
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


def test_all_nodes_of_an_attempt_derive_a_port_that_no_other_attempt_derives(monkeypatch):
    monkeypatch.setattr(supervise, "_address", str)
    attempts = [("7", 0, "a"), ("7", 1, "b"), ("7", 7, "c"), ("8", 0, "d"), ("7", 0, "elsewhere")]

    def ports(id, restart, mark):
        where = Allocation(id=id, restart=restart, node=0, names=("n1", "n2"), mark=mark)
        return {replace(where, node=node).place().port for node in (0, 1)}

    found = [ports(*attempt) for attempt in attempts]
    assert [len(each) for each in found] == [1] * 5
    assert len(set().union(*found)) == 5
