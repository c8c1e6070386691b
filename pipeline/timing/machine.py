"""The machine while it was timed: clocks, governors, throttling, and what was set from outside."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

CPUS = Path("/sys/devices/system/cpu")
GPU = ("name", "clocks.sm", "clocks.max.sm", "clocks_event_reasons.active", "temperature.gpu",
       "power.draw", "persistence_mode")  # fmt: skip
# begin the names of variables that change how fast a network runs
TUNING = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_",
          "DNNL_", "CUDA_", "CUDNN_", "NVIDIA_TF32_OVERRIDE")  # fmt: skip


def tuning() -> dict[str, str]:
    """Return the variables of the environment that change how fast a network runs."""
    return {name: value for name, value in os.environ.items() if name.startswith(TUNING)}


def state() -> dict[str, Any]:
    """Return what the kernel and the driver tell; what they do not tell is left out."""
    told: dict[str, Any] = {}
    clocks = [
        float(line.split(":")[1])
        for line in _read(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("cpu MHz")
    ]
    if clocks:
        told["cpu_mhz"] = {"lowest": min(clocks), "highest": max(clocks)}
    governors = {_read(path).strip() for path in CPUS.glob("cpu*/cpufreq/scaling_governor")}
    if governors:
        told["governors"] = sorted(governors)
    throttled = [_read(p).strip() for p in CPUS.glob("cpu*/thermal_throttle/core_throttle_count")]
    if throttled:
        told["throttled"] = sum(int(count or 0) for count in throttled)
    told |= _gpu()
    return told


def throttled(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether the processor was slowed down by heat in between."""
    return bool(after.get("throttled", 0) > before.get("throttled", 0))


def _gpu() -> dict[str, Any]:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if done.returncode or not done.stdout.strip():
        return {}
    values = done.stdout.splitlines()[0].split(", ")
    return {"gpu": dict(zip(GPU, values, strict=False))}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
