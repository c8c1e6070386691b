"""Query SLURM for the site's configuration, partitions, nodes and hosts."""

from __future__ import annotations

import re

from slurm import scheduler
from slurm.notation import numbers

_PAIR = re.compile(r"(\w+)=(\S*)")


def entry(*what: str) -> dict[str, str]:
    """Return the `Key=Value` pairs that `scontrol show …` prints; values end at a space.

    Raises:
        Refused: SLURM knows no such object.
        Unreachable: the controller does not answer.
    """
    return dict(_PAIR.findall(scheduler.call("scontrol", "--oneliner", "show", *what)))


def partitions() -> list[dict[str, str]]:
    """Return the settings of each partition, from `scontrol show partition`.

    Raises:
        Unreachable: the controller does not answer.
    """
    lines = scheduler.call("scontrol", "--all", "--oneliner", "show", "partition").splitlines()
    return [dict(_PAIR.findall(line)) for line in lines if line]


def hosts() -> set[str]:
    """Return the host names of the cluster; one host can run several nodes.

    Raises:
        Unreachable: the controller does not answer.
    """
    text = scheduler.call("scontrol", "--oneliner", "show", "node")
    return set(re.findall(r"NodeHostName=(\S+)", text))


def final(code: int, settings: dict[str, str]) -> int:
    """Return an exit code that ends a job for good; `code` unless the site repeats or holds that.

    Args:
        code: the exit code to give.
        settings: the configuration of the cluster.
    """
    repeated = numbers(settings["RequeueExit"], settings["RequeueExitHold"])
    return next((other for other in (code, *range(1, 256)) if other not in repeated), code)


def config() -> dict[str, str]:
    """Return the configuration of the cluster, from `scontrol show config`.

    Raises:
        Unreachable: the controller does not answer.
    """
    return dict(
        re.findall(r"^(\w+)\s*= (.*)$", scheduler.call("scontrol", "show", "config"), re.MULTILINE)
    )
