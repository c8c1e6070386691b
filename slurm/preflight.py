"""Check before a submission that SLURM will accept and can start the jobs."""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from slurm import limits, scheduler, site
from slurm.job import Resources
from slurm.notation import minutes
from slurm.sbatch import FIELDS, OURS, Executor
from slurm.scheduler import Refused

WHOLE = {"ntasks"}  # options of sbatch, though others begin with the same letters
USAGE = "Usage: srun"
NODE_LOCAL = ("tmpfs", "ramfs", "devtmpfs")  # file systems that other nodes cannot see


def check(resources: Resources, folder: Path) -> None:
    """Check that SLURM accepts a job with these resources and can run it.

    Raises:
        Refused: SLURM refuses the job or could never start it; the message names the resource and
            what is possible.
        Unreachable: SLURM does not answer.
    """
    scheduler.call("sbatch", "--version")
    _check_options({name.replace("_", "-") for name in resources.sbatch})
    _check_setup(resources.setup)
    _check_srun(resources.srun)
    partitions = chosen(resources.partition)
    _check_partitions(resources, partitions)
    limits.check(resources, partitions)
    try:
        _rehearse(resources, folder)
    except Refused as error:
        if "not available" in str(error) and _later(resources, partitions):
            return
        names = ",".join(p["PartitionName"] for p in partitions)
        offers = "; ".join(dict.fromkeys(map(_offer, partitions)))
        raise Refused(
            f"{error} (partition {names}; {offers}; asked for {_say(resources)})"
        ) from None


def _check_options(options: set[str]) -> None:
    """Refuse options of sbatch that we set, also if they are abbreviated, as sbatch allows."""
    for option in options:
        meant = {full for full in OURS | FIELDS if full.startswith(option)} - {option}
        if option in OURS:
            raise Refused(f"sbatch's --{option} is what recovery builds on; leave it out")
        if option in FIELDS:
            raise Refused(f"sbatch's --{option} has a setting of its own; use that, leave it out")
        if meant and option not in WHOLE:
            raise Refused(f"sbatch takes --{option} for --{min(meant)}; write options in full")


def _check_setup(lines: tuple[str, ...]) -> None:
    """Refuse shell lines that bash cannot parse: no command would follow them."""
    done = subprocess.run(
        ["bash", "-n"], input="\n".join([*lines, ""]), capture_output=True, text=True,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    if line := done.stderr.strip().partition("\n")[0]:  # also of a here-document without an end
        raise Refused(f"cluster.setup cannot be parsed ({line.removeprefix('bash: ')}); correct it")


def _check_srun(options: tuple[str, ...]) -> None:
    """Refuse what srun would not take for options, without running anything."""
    setting = f"cluster.srun={','.join(options)}"
    try:
        output = scheduler.call("srun", "--test-only", *options, "--help") if options else USAGE
    except Refused as error:
        raise Refused(f"{setting}: {error}; correct it") from None
    if USAGE not in output:  # srun has taken a word for the command, and --help for its argument
        raise Refused(f"{setting} holds words that are not options; leave them out")


def _check_partitions(resources: Resources, partitions: list[dict[str, str]]) -> None:
    """Check that at least one of the partitions is up and allows the time limit."""
    up = [p for p in partitions if p["State"] == "UP"]
    if not up:
        name, state = partitions[0]["PartitionName"], partitions[0]["State"].lower()
        raise Refused(f"partition {name} is {state}; choose another")
    longest = max(up, key=lambda p: _most(p))
    if resources.time_limit > _most(longest):  # SLURM would leave it pending for ever
        raise Refused(
            f"the time limit of {resources.time_limit} minutes is above the {_most(longest):.0f} "
            f"minutes ({longest['MaxTime']}) of partition {longest['PartitionName']}; ask for "
            "less, interrupted work goes on"
        )


def _most(partition: dict[str, str]) -> float:
    most = minutes(partition["MaxTime"])
    return math.inf if most is None else most


def chosen(names: str | None) -> list[dict[str, str]]:
    """Return the settings of the partitions that a job may run in.

    Args:
        names: names separated by commas; None for the default partition, or for all partitions if
            a plugin of the site chooses one.

    Raises:
        Refused: there is no such partition.
        Unreachable: SLURM does not answer.
    """
    there = {p["PartitionName"]: p for p in site.partitions()}
    if names is not None:
        for name in names.split(","):
            if name not in there:
                raise Refused(f"there is no partition {name}; choose one of {', '.join(there)}")
        return [there[name] for name in names.split(",")]
    if site.config().get("JobSubmitPlugins", "(null)") != "(null)":
        return list(there.values())
    default = [p for p in there.values() if p["Default"] == "YES"]
    if not default:
        raise Refused(f"no partition is the default; choose one of {', '.join(there)}")
    return default


def _rehearse(resources: Resources, folder: Path) -> None:
    """Let sbatch test the script without submitting it."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".sh") as script:
        executor = Executor(folder, Path.cwd(), resources)
        executor.prepare("rehearsal", "TOKEN", "", 1)  # adds the further options of sbatch
        script.write(executor.text())
        script.flush()
        scheduler.call("sbatch", "--test-only", script.name)


def _later(resources: Resources, partitions: list[dict[str, str]]) -> bool:
    """Whether the only reason why a job cannot run is that nodes are down or drained now."""
    able, out = set(), False
    names = ",".join(p["PartitionName"] for p in partitions)
    fields = "NodeHost:|,CPUs:|,Memory:|,Gres:|,StateCompact:|"
    query = ("--noheader", "--Node", f"--partition={names}", f"--Format={fields}")
    kind = re.escape(resources.gpu_type) if resources.gpu_type else r"[^:,(]+"
    gpu = re.compile(rf"gpu:{kind}:(\d+)" if resources.gpu_type else rf"gpu(?::{kind})?:(\d+)")
    for line in scheduler.call("sinfo", *query).splitlines():
        host, cpus, memory, gres, state, *_ = (word.strip() for word in line.split("|"))
        enough = (
            int(cpus) >= resources.cpus_per_node
            and int(memory) >= 1024 * (resources.memory or 0)
            and sum(map(int, gpu.findall(gres))) >= resources.gpus_per_node
        )
        able |= {host} if enough else set()
        silent = state.endswith("*")  # as all nodes are just after the controller's start
        out |= silent or state.startswith(("down", "drain", "drng", "fail", "maint", "unk"))
    return out and len(able) >= resources.nodes


def _offer(partition: dict[str, str]) -> str:
    """Describe the nodes of a partition."""
    text = scheduler.call(
        "sinfo", "-h", "-p", partition["PartitionName"], "-o", "%c CPUs, %m MB, %G"
    )
    kinds = [line.replace("(null)", "no GPU") for line in text.splitlines()]
    return f"{partition['TotalNodes']} nodes with {' or '.join(kinds)}"


def _say(resources: Resources) -> str:
    parts = [f"{resources.nodes} nodes", f"{resources.cpus_per_node} CPUs"]
    kind = f" {resources.gpu_type}" if resources.gpu_type else ""
    parts += [f"{resources.gpus_per_node}{kind} GPUs"] if resources.gpus_per_node else []
    parts += [f"{resources.memory} GB"] if resources.memory else []
    parts += [f"cluster.sbatch.{name}={value}" for name, value in resources.sbatch.items()]
    return ", ".join(parts)


def gpus(partition: str | None) -> bool:
    """Whether the nodes of a partition have GPUs.

    Raises:
        Unreachable: SLURM does not answer.
    """
    names = ",".join(p["PartitionName"] for p in chosen(partition))
    return "gpu" in scheduler.call("sinfo", "--noheader", f"--partition={names}", "--format=%G")


@cache
def preemption(partition: str | None, qos: str | None, account: str | None = None) -> str:
    """Return SLURM's preemption mode for a job: OFF, REQUEUE, CANCEL, ….

    If several partitions have different modes, return the mode that is hardest to survive.
    """
    settings = site.config()
    mode = settings["PreemptMode"]
    if settings["PreemptType"] == "preempt/none":
        return "OFF"
    if settings["PreemptType"] == "preempt/partition_prio":
        modes = {p["PreemptMode"] for p in chosen(partition)}
        mode = max(modes, key=lambda mode: ("CANCEL" in mode.upper(), mode != "OFF"))
    else:
        query = ("show", "qos", qos or limits.usual_qos(account), "format=PreemptMode")
        own = scheduler.call("sacctmgr", "--noheader", "--parsable2", *query).strip()
        mode = own if own and own != "cluster" else mode
    return mode


def cancels(resources: Resources) -> bool:
    """Whether preemption cancels a job with these resources for good.

    Raises:
        Unreachable: SLURM does not answer.
    """
    mode = preemption(resources.partition, resources.qos, resources.account)
    return "CANCEL" in mode.upper()


def room(count: int) -> None:
    """Check that the controller can hold `count` more jobs; otherwise sbatch would try for minutes.

    Raises:
        Refused: the controller cannot hold them.
        Unreachable: the controller does not answer.
    """
    most = int(site.config()["MaxJobCount"])
    held = scheduler.call("squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i")
    known = len(held.splitlines())
    if known + count >= most:
        raise Refused(
            f"{count} jobs are one launch too many: this cluster holds MaxJobCount={most} at a "
            f"time, and has {known}; launch fewer runs at once, or wait until some have left"
        )


def longest_array() -> int:
    """Return the largest number of elements of a job array; 1 if the site allows no arrays.

    Raises:
        Unreachable: SLURM does not answer.
    """
    settings = site.config()
    tasks = re.search(r"max_array_tasks=(\d+)", settings["SchedulerParameters"])
    limits = [int(settings["MaxArraySize"]), *([int(tasks[1])] if tasks else [])]
    return max(1, min(limits))


def shared(directory: Path) -> None:
    """Check that other nodes can see a directory, which need not exist yet.

    Raises:
        Refused: the directory is in the memory of this host while the cluster has other hosts, or
            its name contains %, which SLURM replaces in file names.
    """
    if "%" in str(directory):
        raise Refused(f"{directory} has a % in its name, which SLURM replaces; use another root")
    directory = next(path for path in (directory, *directory.parents) if path.exists())
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", directory], capture_output=True, text=True
    ).stdout.strip()
    if kind in NODE_LOCAL and len(site.hosts()) > 1:
        raise Refused(
            f"{directory} is on {kind}, which no other node sees; use a shared file system"
        )
