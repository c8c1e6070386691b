"""What SLURM would refuse, or silently never start, found before anything is submitted."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from slurm import scheduler
from slurm.job import Resources
from slurm.sbatch import Executor
from slurm.scheduler import Refused

NODE_LOCAL = ("tmpfs", "ramfs", "devtmpfs")  # file systems that no other node can see


def check(resources: Resources, folder: Path) -> None:
    """Make sure that SLURM takes a job with these resources and can run it.

    Raises:
        Refused: it does not; names the resource and what is possible.
        Unreachable: it does not answer.
    """
    scheduler.call("sbatch", "--version")
    partition = chosen(resources.partition)
    name = partition["PartitionName"]
    most = scheduler.minutes(partition["MaxTime"])
    if partition["State"] != "UP":
        raise Refused(f"partition {name} is {partition['State'].lower()}; choose another")
    if most is not None and resources.time_limit > most:  # SLURM would let it wait for ever
        raise Refused(
            f"the time limit of {resources.time_limit} minutes is above the {most:.0f} minutes "
            f"({partition['MaxTime']}) of partition {name}; ask for less, interrupted work goes on"
        )
    try:
        _rehearse(resources, folder)
    except Refused as error:
        raise Refused(
            f"{error} (partition {name}; {_offer(partition)}; asked for {_say(resources)})"
        ) from None


def chosen(name: str | None) -> dict[str, str]:
    """Return what SLURM says of a partition, or of the default one.

    Raises:
        Refused: there is no such partition.
        Unreachable: SLURM does not answer.
    """
    partitions = {p["PartitionName"]: p for p in scheduler.partitions()}
    if name is None:
        default = next((p for p in partitions.values() if p["Default"] == "YES"), None)
        if default is None:
            raise Refused(f"no partition is the default; choose one of {', '.join(partitions)}")
        return default
    if name not in partitions:
        raise Refused(f"there is no partition {name}; choose one of {', '.join(partitions)}")
    return partitions[name]


def _rehearse(resources: Resources, folder: Path) -> None:
    """Have sbatch look at the script without submitting it."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(Executor(folder, Path.cwd(), resources).text())
        script.flush()
        scheduler.call("sbatch", "--test-only", script.name)


def _offer(partition: dict[str, str]) -> str:
    """Say what the nodes of a partition have."""
    text = scheduler.call(
        "sinfo", "-h", "-p", partition["PartitionName"], "-o", "%c CPUs, %m MB, %G"
    )
    kinds = [line.replace("(null)", "no GPU") for line in text.splitlines()]
    return f"{partition['TotalNodes']} nodes with {' or '.join(kinds)}"


def _say(resources: Resources) -> str:
    parts = [f"{resources.nodes} nodes", f"{resources.cpus_per_node} CPUs"]
    parts += [f"{resources.gpus_per_node} GPUs"] if resources.gpus_per_node else []
    parts += [f"{resources.memory} GB"] if resources.memory else []
    return ", ".join(parts)


def gpus(partition: str | None) -> bool:
    """Return whether the nodes of a partition have GPUs.

    Raises:
        Unreachable: SLURM does not answer.
    """
    name = chosen(partition)["PartitionName"]
    return "gpu" in scheduler.call("sinfo", "--noheader", f"--partition={name}", "--format=%G")


@cache
def preemption(partition: str | None, qos: str | None) -> str:
    """Return OFF, REQUEUE, CANCEL or whatever else SLURM does to a job that is preempted."""
    settings = scheduler.config()
    mode = settings["PreemptMode"]
    if settings["PreemptType"] == "preempt/none":
        return "OFF"
    if settings["PreemptType"] == "preempt/partition_prio":
        mode = chosen(partition)["PreemptMode"]
    elif qos:
        asked = ("sacctmgr", "--noheader", "--parsable2", "show", "qos", qos, "format=PreemptMode")
        own = scheduler.call(*asked).strip()
        mode = own if own and own != "cluster" else mode
    return mode


def cancels(resources: Resources) -> bool:
    """Return whether a job with these resources is cancelled for good when it is preempted.

    Raises:
        Unreachable: SLURM does not answer.
    """
    return "CANCEL" in preemption(resources.partition, resources.qos).upper()


def shared(directory: Path) -> None:
    """Make sure that other nodes may see a directory.

    Raises:
        Refused: it lies in the memory of this machine, and the cluster has others.
    """
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", directory], capture_output=True, text=True
    ).stdout.strip()
    if kind in NODE_LOCAL and len(scheduler.hosts()) > 1:
        raise Refused(
            f"{directory} is on {kind}, which no other node sees; use a shared file system"
        )
