"""Describe the versions, device and cores behind a result, so that results can be compared."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from pipeline.records.provenance import versions
from slurm import place


def describe() -> dict[str, str | int]:
    """Return versions and hardware as seen by this process."""
    return {**versions(), "device": device(), "cores": cores()}


def cores() -> int:
    """Return the number of cores this process may use, by its CPU affinity and cgroup quota."""
    allowed = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # the quota of a container, cgroup v2
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        allowed = min(allowed, max(1, round(int(quota) / int(period))))
    return min(allowed, int(os.environ.get("SLURM_CPUS_PER_TASK", allowed)))


def more_cores() -> str:
    """Return advice how to give a stage more cores; "" for a local run, which has all of them."""
    return "more cores (cluster.cpus_per_process), " if place.supervised() else ""


def fewer_cores() -> str:
    """Return advice how to give a stage fewer cores, and thereby fewer processes."""
    if place.supervised():
        return "fewer cluster.cpus_per_process"
    return "fewer cores (taskset -c 0 python -m pipeline.launch …)"


def device() -> str:
    """Return the name of the GPU, or of the processor if there is no GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor()


def processor() -> str:
    """Return the model name of the processor; its architecture if /proc cannot be read."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
