"""A real SLURM cluster for the tests of this folder."""

import os

import pytest

from slurm.dev_cluster import Cluster, down, up


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Return a cluster of four nodes that everything in this process and below it talks to."""
    directory = tmp_path_factory.mktemp("cluster", numbered=True) / "c"
    made = Cluster(directory, nodes=4, gpus_per_node=2, cpus_per_node=2, grace=2)
    up(made)
    before = os.environ.copy()
    os.environ.update(made.environment)
    yield made
    os.environ.clear()
    os.environ.update(before)
    down(directory)
