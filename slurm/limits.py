"""Find the limits of accounts and QOS under which a job would be pending for ever.

SLURM accepts such a job (pending with QOSMaxWallDurationPerJobLimit, AssocMaxCpuPerJobLimit, …)
unless the QOS has DenyOnLimit. Only limits that one job exceeds by itself are considered, because
the usage of shared limits by other jobs changes.
"""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Iterator
from contextlib import suppress

from slurm import scheduler, site
from slurm.job import Resources
from slurm.notation import minutes
from slurm.scheduler import Refused, Unreachable

WALL = "MaxWall"
TRES = ("MaxTRES", "MaxTRESPU", "MaxTRESPA", "GrpTRES")  # limits per job, user, account; in total
OF_ACCOUNTS = ("MaxTRES", "GrpTRES")
UNITS = {"": 1, "M": 1, "K": 1 / 1024, "G": 1024, "T": 1024**2, "P": 1024**3}  # memory units in MB
Limits = dict[str, str]  # keyed by their names in sacctmgr


def check(resources: Resources, partitions: list[dict[str, str]]) -> None:
    """Check a job against the limits of its QOS and its account.

    Raises:
        Refused: the job exceeds a limit in every partition; the message names the limit.
        Unreachable: SLURM does not answer.
    """
    enforced = site.config().get("AccountingStorageEnforce", "").split(",")
    if not {"limits", "safe"}.intersection(enforced):
        return
    with suppress(Unreachable):  # without accounting, SLURM itself decides
        account, own = _of_account(resources.account), _of_qos(resources)
        found = [
            next(above(resources, account | _both(own, _of_partition(partition))), None)
            for partition in partitions
        ]
        if found and None not in found:
            raise Refused(f"{found[0]}; SLURM would let it wait for ever, ask for less")


def above(resources: Resources, limits: Limits) -> Iterator[str]:
    """Yield the limits that a job exceeds by itself."""
    if limits.get(WALL):
        most = minutes(limits[WALL]) or math.inf
        if resources.time_limit > most:
            yield f"the time limit of {resources.time_limit} minutes is above {WALL}={limits[WALL]}"
    wanted = requested(resources)
    for name in TRES:
        for what, most in _amounts(limits.get(name, "")):
            if wanted.get(what, 0) > most:
                yield f"{what}={wanted[what]:g} is above {what}={most:g} of {name}"


def requested(resources: Resources) -> dict[str, float]:
    """Return the resources of a job under SLURM's names; memory in MB."""
    gpus = resources.nodes * resources.gpus_per_node
    return {
        "node": resources.nodes,
        "cpu": resources.nodes * resources.cpus_per_node,
        "mem": resources.nodes * 1024 * (resources.memory or 0),
        "gres/gpu": gpus,
        **({f"gres/gpu:{resources.gpu_type}": gpus} if resources.gpu_type else {}),
    }


def usual_qos(account: str | None) -> str:
    """Return the default QOS of this user."""
    rows = _rows("show", "assoc", f"user={getpass.getuser()}", "format=Account,DefaultQOS")
    usual = dict(rows)
    return next(iter([usual[account]] if account in usual else usual.values()), "") or "normal"


def _amounts(text: str) -> Iterator[tuple[str, float]]:
    """Parse `cpu=4,gres/gpu=2,mem=10G`; memory in MB."""
    for what, number, unit in re.findall(r"([\w/:.-]+)=(\d+(?:\.\d+)?)([KMGTP]?)", text):
        yield what, float(number) * (UNITS[unit] if what == "mem" else 1)


def _both(own: Limits, partition: Limits) -> Limits:
    """Merge the limits of the job's QOS with the partition's, which take precedence by default."""
    return partition | own if "OverPartQOS" in own.get("Flags", "") else own | partition


def _of_qos(resources: Resources) -> Limits:
    return _qos(resources.qos or usual_qos(resources.account))


def _of_partition(partition: dict[str, str]) -> Limits:
    return {} if partition.get("QoS", "N/A") == "N/A" else _qos(partition["QoS"])


def _qos(name: str) -> Limits:
    fields = (WALL, *TRES, "Flags")
    return _first(fields, _rows("show", "qos", name, f"format={','.join(fields)}"))


def _of_account(account: str | None) -> Limits:
    fields = (WALL, *OF_ACCOUNTS)
    which = [f"account={account}"] if account else []
    user = f"user={getpass.getuser()}"
    return _first(fields, _rows("show", "assoc", user, *which, f"format={','.join(fields)}"))


def _first(fields: tuple[str, ...], rows: list[list[str]]) -> Limits:
    words = rows[0] if rows else []
    return {name: word for name, word in zip(fields, words, strict=False) if word}


def _rows(*what: str) -> list[list[str]]:
    lines = scheduler.call("sacctmgr", "--noheader", "--parsable2", *what).splitlines()
    return [line.split("|") for line in lines]
