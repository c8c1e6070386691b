"""Pass the node number and the rendezvous address from a supervisor to its command.

They are environment variables with names of our own, valid for one directory. Other tools leave
`NNODES`, `MASTER_ADDR` and the like in shells, and a process inside a job inherits the job's
environment. Neither must make a command wait for nodes that it does not have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

OWNER = "SUPERVISED_JOB"  # job number and restart
DIRECTORY = "SUPERVISED_DIRECTORY"  # directory for which the variables are valid
NODE = "SUPERVISED_NODE"
NODES = "SUPERVISED_NODES"
ADDRESS = "SUPERVISED_ADDRESS"
PORT = "SUPERVISED_PORT"
WORDS = (OWNER, DIRECTORY, NODE, NODES, ADDRESS, PORT)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a node in its job.

    Args:
        job: job number and restart.
        node: number of this node in the job.
        nodes: number of nodes of the job.
        address: address of the first node.
        port: port on the first node where the processes of the job meet.
    """

    job: str
    node: int
    nodes: int
    address: str
    port: int

    def words(self, directory: Path) -> dict[str, str]:
        """Return the variables to add to the environment of a directory's command."""
        return {
            OWNER: self.job,
            DIRECTORY: str(directory),
            NODE: str(self.node),
            NODES: str(self.nodes),
            ADDRESS: self.address,
            PORT: str(self.port),
        }

    @classmethod
    def from_environment(
        cls, directory: Path, environment: Mapping[str, str] = os.environ
    ) -> Self | None:
        """Return the place for a directory's command from the environment; None if it has none."""
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
    """Return the message for nodes of a job from which nothing arrived."""
    return (
        f"nothing came from {nodes}: do they see {directory}? To do without "
        f"them: 'cluster.sbatch={{exclude: \"{nodes}\"}}'"
    )


def supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process belongs to one of our jobs."""
    return OWNER in environment


def unsupervised(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment without the supervisor's variables."""
    return {name: value for name, value in environment.items() if name not in WORDS}
