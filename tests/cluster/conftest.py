"""Provide a real SLURM cluster for the tests of this folder."""

import os

import pytest

from slurm import scheduler
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import down, up
from tests.cluster.job_under_test import Chain, update
from tests.cluster.real import call, wait_for


@pytest.fixture(scope="session")
def daemons(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster", numbered=True) / "c"
    made = Cluster(directory, nodes=4, gpus_per_node=2, cpus_per_node=2, grace=2)
    up(made)
    yield made
    down(directory)


@pytest.fixture(scope="module")
def cluster(daemons):
    """Provide a cluster of four nodes, and let SLURM's commands of this process use it."""
    before = os.environ.copy()
    os.environ.update(daemons.environment)
    scheduler._has_json.cache_clear()  # other tests replace SLURM's commands
    yield daemons
    call("scancel", "--me")
    wait_for(lambda: not call("squeue", "--me", "--noheader"))
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def chain(cluster, tmp_path):
    return lambda **how: Chain(tmp_path, **how)


@pytest.fixture
def partition(cluster):
    """Return a function that changes the preemptible partition, which is restored afterwards."""
    yield update
    update(GraceTime=cluster.grace, PreemptMode="REQUEUE")
