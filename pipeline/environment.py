"""What a result was made on: versions, device, cores; enough to judge whether two compare."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from pipeline.provenance import versions


def describe() -> dict[str, Any]:
    """Return versions and hardware as seen by this process."""
    return {**versions(), "device": device(), "cores": len(os.sched_getaffinity(0))}


def device() -> str:
    """Name the accelerator, or the processor where there is none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor()


def processor() -> str:
    """Return the model name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
