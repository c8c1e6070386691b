"""Compute the resources that each stage requests, and check them with SLURM before a launch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import slurm.preflight
from pipeline.config import Config
from pipeline.config.cluster import Slurm
from pipeline.display.errors import UserError
from slurm import wishes
from slurm.job import Resources
from slurm.scheduler import Refused, Unreachable

FOR_GPUS = {"aotinductor", "tensorrt"}  # exports compiled for the GPU of the fuse job


def check(config: Config) -> None:
    """Check with SLURM that the jobs can run, before anything is written; skip a local run.

    Raises:
        UserError: a job could not run; the message names the setting and what is possible.
    """
    if config.cluster.name != "slurm":
        return
    try:
        for stage in config.stage.run:
            _check(of(config, stage), stage)
        _check_shared(config.root)
    except (Refused, Unreachable) as error:
        raise explained(error) from None


_checked: set[str] = set()


def _check(resources: Resources, stage: str) -> None:
    """Check each kind of resources once, however many runs of a sweep use it."""
    if repr(resources) in _checked:
        return
    try:
        slurm.preflight.check(resources, Path.cwd())
    except Refused as error:
        raise Refused(f"{stage}: {error}") from None
    _checked.add(repr(resources))


def explained(error: Exception) -> UserError:
    """Return the error for a refusal by SLURM, with the cure."""
    cure, left = "", getattr(error, "__notes__", [])
    if "there is no" in str(error) and "on this machine" in str(error):
        cure = "; launch where SLURM is installed, or use cluster=local"
    if isinstance(error, Unreachable):
        cure = "; launch again when it answers (`sinfo` shows whether it does)"
        cure = cure if left else f"; nothing is submitted{cure}"
    return UserError("; ".join([f"cluster=slurm: {error}{cure}", *left]))


@cache
def _check_shared(root: str) -> None:
    slurm.preflight.shared(Path(root).absolute())


def of(config: Config, stage: str) -> Resources:
    """Return the resources of a stage; with GPUs if it can use them and the cluster has some."""
    cluster = config.cluster
    assert isinstance(cluster, Slurm)
    processes = cluster.processes(stage)
    configured = Resources(
        nodes=cluster.given(stage, "nodes"),
        gpu_type=cluster.gpu_type(stage),
        cpus_per_node=processes * cluster.given(stage, "cpus_per_process"),
        memory=cluster.given(stage, "memory"),
        time_limit=cluster.given(stage, "time_limit"),
        signal_seconds=cluster.signal_seconds,
        partition=cluster.given(stage, "partition"),
        account=cluster.account,
        qos=cluster.given(stage, "qos"),
        constraint=cluster.given(stage, "constraint"),
        exclusive=cluster.given(stage, "exclusive"),
        comment=cluster.comment,
        sbatch=cluster.sbatch,
        srun=tuple(cluster.srun),
        setup=tuple(cluster.setup),
    )
    resources = wishes.obey(configured)
    gpus = cluster.gpus_of(stage)
    if gpus is None:
        useless = stage == "fuse" and not FOR_GPUS.intersection(config.fuse.exports)
        gpus = 0 if useless or not _has_gpus(resources.partition) else processes
    return replace(resources, gpus_per_node=gpus)


@cache
def _has_gpus(partition: str | None) -> bool:
    return slurm.preflight.gpus(partition)
