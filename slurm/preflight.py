"""What SLURM would refuse, or silently never start, found before anything is submitted."""

from __future__ import annotations

import getpass
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from slurm import scheduler
from slurm.job import Resources
from slurm.sbatch import FIELDS, OURS, Executor
from slurm.scheduler import Refused

NODE_LOCAL = ("tmpfs", "ramfs", "devtmpfs")  # file systems that no other node can see


def check(resources: Resources, folder: Path) -> None:
    """Make sure that SLURM takes a job with these resources and can run it.

    Raises:
        Refused: it does not; names the resource and what is possible.
        Unreachable: it does not answer.
    """
    scheduler.call("sbatch", "--version")
    for option in {name.replace("_", "-") for name in resources.sbatch}:
        if option in OURS:
            raise Refused(f"sbatch's --{option} is what recovery builds on; leave it out")
        if option in FIELDS:
            raise Refused(f"sbatch's --{option} has a setting of its own; use that, leave it out")
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
        if "not available" in str(error) and _later(resources, name):
            return
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


def _later(resources: Resources, partition: str) -> bool:
    """Return whether it is only for nodes that are out at present that a job cannot run."""
    able, out = 0, 0
    fields = "NodeHost:|,CPUs:|,Memory:|,Gres:|,StateCompact:|"
    asked = ("--noheader", "--Node", f"--partition={partition}", f"--Format={fields}")
    for line in scheduler.call("sinfo", *asked).splitlines():
        _, cpus, memory, gres, state, *_ = (word.strip() for word in line.split("|"))
        gpus = sum(map(int, re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres)))
        able += (
            int(cpus) >= resources.cpus_per_node
            and int(memory) >= 1024 * (resources.memory or 0)
            and gpus >= resources.gpus_per_node
        )
        out += state.startswith(("down", "drain", "drng", "fail", "maint"))
    return out > 0 and able >= resources.nodes


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
def preemption(partition: str | None, qos: str | None, account: str | None = None) -> str:
    """Return OFF, REQUEUE, CANCEL or whatever else SLURM does to a job that is preempted."""
    settings = scheduler.config()
    mode = settings["PreemptMode"]
    if settings["PreemptType"] == "preempt/none":
        return "OFF"
    if settings["PreemptType"] == "preempt/partition_prio":
        mode = chosen(partition)["PreemptMode"]
    else:
        asked = ("show", "qos", qos or _usual_qos(account), "format=PreemptMode")
        own = scheduler.call("sacctmgr", "--noheader", "--parsable2", *asked).strip()
        mode = own if own and own != "cluster" else mode
    return mode


def _usual_qos(account: str | None) -> str:
    """Return the QOS of a job that asks for none."""
    asked = ("show", "assoc", f"user={getpass.getuser()}", "format=Account,DefaultQOS")
    lines = scheduler.call("sacctmgr", "--noheader", "--parsable2", *asked).splitlines()
    usual = dict(line.split("|", 1) for line in lines)
    return next(iter([usual[account]] if account in usual else usual.values()), "") or "normal"


def cancels(resources: Resources) -> bool:
    """Return whether a job with these resources is cancelled for good when it is preempted.

    Raises:
        Unreachable: SLURM does not answer.
    """
    mode = preemption(resources.partition, resources.qos, resources.account)
    return "CANCEL" in mode.upper()


def shared(directory: Path) -> None:
    """Make sure that other nodes may see a directory, which need not exist yet.

    Raises:
        Refused: it lies in the memory of this machine, and the cluster has others; or its name
            holds what SLURM replaces in the names of files.
    """
    if "%" in str(directory):
        raise Refused(f"{directory} has a % in its name, which SLURM replaces; use another root")
    directory = next(path for path in (directory, *directory.parents) if path.exists())
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", directory], capture_output=True, text=True
    ).stdout.strip()
    if kind in NODE_LOCAL and len(scheduler.hosts()) > 1:
        raise Refused(
            f"{directory} is on {kind}, which no other node sees; use a shared file system"
        )
