"""Obey or refuse the sbatch variables of the user's shell (SBATCH_ACCOUNT, …).

With sbatch itself they would take precedence over the batch script, and so over settings. This
module puts them into the script unless a setting says otherwise. So they are visible before the
submission, and successors keep them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from slurm import site
from slurm.job import Resources
from slurm.sbatch import FIELDS, OURS
from slurm.scheduler import Refused

PREFIX = "SBATCH_"
CLUSTERS = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")
NAMES = {
    "ARRAY_INX": "array",
    "CPU_FREQ_REQ": "cpu-freq",
    "MEM_PER_NODE": "mem",
    "REQ_SWITCH": "switches",
    "TIMELIMIT": "time",
}  # variables whose option has another name
FLAGS = {"get-user-env", "ignore-pbs", "no-kill", "overcommit", "spread-job", "use-min-nodes"}
NOTHING = {"clusters", "debug", "requeue"}  # handled elsewhere, only verbosity, or always requested
COUNTED = {"gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"}
NAMED = ("account", "partition", "qos", "constraint")


def obey(resources: Resources, environment: Mapping[str, str] = os.environ) -> Resources:
    """Return the resources, completed by the sbatch variables of the shell.

    Raises:
        Refused: a variable requests something that our jobs cannot have, or has a setting.
        Unreachable: SLURM does not answer.
    """
    _check_cluster(environment)
    for name, value in sorted(environment.items()):
        if name.startswith(PREFIX):
            resources = _obey(resources, name, value)
    return resources


def variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the sbatch variables of the shell as `NAME=VALUE`."""
    return [f"{name}={value}" for name, value in environment.items() if name.startswith(PREFIX)]


def _obey(resources: Resources, name: str, value: str) -> Resources:
    word = name.removeprefix(PREFIX)
    option = NAMES.get(word, word.lower().replace("_", "-"))
    clause = f"your shell has {name}={value}"
    if option in NOTHING or (not value and option not in FLAGS):
        return resources
    if option in OURS:
        raise Refused(f"{clause}, but sbatch's --{option} is what recovery builds on; unset {name}")
    if option in NAMED:
        wish: dict[str, Any] = {option: value}
        return resources if getattr(resources, option) is not None else replace(resources, **wish)
    if option in FIELDS or option in COUNTED:
        raise Refused(
            f"{clause}, but sbatch's --{option} has a setting of its own; use that and unset {name}"
        )
    if option in {key.replace("_", "-") for key in resources.sbatch}:
        return resources
    own = {option: True if option in FLAGS else value}
    return replace(resources, sbatch={**resources.sbatch, **own})


def _check_cluster(environment: Mapping[str, str]) -> None:
    """Check that the shell names the cluster of the current SLURM configuration."""
    for name in CLUSTERS:
        wish = environment.get(name)
        if wish and wish != _cluster():
            raise Refused(
                f"your shell has {name}={wish}, but jobs go to cluster {_cluster()}; launch on "
                f"{wish} or set SLURM_CONF to its slurm.conf, and unset {name}"
            )


@cache
def _cluster() -> str:
    return site.config()["ClusterName"]
