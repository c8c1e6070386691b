"""Where a command runs within its job: the word that a supervisor gives the command it starts.

The names are our own, and the word holds for one directory. `NNODES`, `MASTER_ADDR` and their like
are left behind in shells by other tools, and whatever is started inside a job inherits its
environment: neither may make a command wait for nodes that it does not have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

OWNER = "SUPERVISED_JOB"  # job and number of its restart
DIRECTORY = "SUPERVISED_DIRECTORY"  # of the command that the word is for
NODE = "SUPERVISED_NODE"
NODES = "SUPERVISED_NODES"
ADDRESS = "SUPERVISED_ADDRESS"
PORT = "SUPERVISED_PORT"
WORDS = (OWNER, DIRECTORY, NODE, NODES, ADDRESS, PORT)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node's part of a job.

    Args:
        job: the job and the number of its restart.
        node: number of this node in the job.
        nodes: how many the job has.
        address: where the first of them is reached.
        port: on which the processes of the job meet there.
    """

    job: str
    node: int
    nodes: int
    address: str
    port: int

    def words(self, directory: Path) -> dict[str, str]:
        """Return what to add to the environment of the command of a directory."""
        return {
            OWNER: self.job,
            DIRECTORY: str(directory),
            NODE: str(self.node),
            NODES: str(self.nodes),
            ADDRESS: self.address,
            PORT: str(self.port),
        }

    @classmethod
    def told(cls, directory: Path, environment: Mapping[str, str] = os.environ) -> Self | None:
        """Return what a supervisor says of the command of a directory; None if it says nothing."""
        if any(word not in environment for word in WORDS):
            return None
        if Path(environment[DIRECTORY]).resolve() != directory.resolve():
            return None
        return cls(
            job=environment[OWNER],
            node=int(environment[NODE]),
            nodes=int(environment[NODES]),
            address=environment[ADDRESS],
            port=int(environment[PORT]),
        )


def blind(nodes: str, directory: Path) -> str:
    """Return what to say where nothing came from some nodes of a job."""
    return (
        f"nothing came from {nodes}: do they see {directory}? To do without "
        f"them: 'cluster.sbatch={{exclude: \"{nodes}\"}}'"
    )


def unsupervised(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment without the word of a supervisor."""
    return {name: value for name, value in environment.items() if name not in WORDS}
