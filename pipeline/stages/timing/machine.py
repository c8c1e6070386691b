"""Record the state of the machine during a measurement: speed, clocks, throttling, tuning."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Required, TypedDict

import torch
from torch import Tensor, nn

CPUS = Path("/sys/devices/system/cpu")
GPU = ("name", "clocks.sm", "clocks.max.sm", "temperature.gpu", "power.draw", "persistence_mode",
       "utilization.gpu")  # fmt: skip
HELD_BACK = "clocks_event_reasons_counters."  # microseconds since the driver was loaded
REASONS = ("sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
POWER = "sw_power_cap"  # recorded, but no noise: the measured work itself can reach the cap
REST = 1.5  # seconds; the driver averages utilization over the last second
BUSY = 0.05  # largest share of that second in which the GPU works for other processes
SLOWED = 0.01  # largest share of the measurement with a slowed-down GPU
# prefixes of variables that change the speed of a network
TUNING = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_",
          "DNNL_", "TORCH_", "CUBLAS_", "CUDA_", "CUDNN_", "NVIDIA_TF32_OVERRIDE")  # fmt: skip


class State(TypedDict, total=False):
    """The reports of kernel and driver at one time (seconds since 1970).

    `gpu` has the fields of nvidia-smi; `throttled` counts how often heat slowed a core down.
    """

    time: Required[float]
    cpu_mhz: dict[str, float]
    governors: list[str]
    throttled: int
    gpu: dict[str, str]


def probe(device: torch.device) -> Callable[[], Tensor]:
    """Return a fixed computation: four 3x3 convolutions of 64 channels on 56 x 56 pixels.

    Its batch is one image on a CPU, and 64 on a GPU, which would otherwise wait for kernel
    launches.

    It is timed between the networks and measures the speed of the machine. Nothing else reveals a
    host that slows a virtual machine down for minutes. Times of two runs can be compared if their
    probes took the same time.
    """
    draw = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(64, 64, 3, padding=1, device=device) for _ in range(4)]
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for weight in network.parameters():  # independent of the global generator
            weight.copy_(0.01 * torch.randn(weight.shape, generator=draw))
    count = 64 if device.type == "cuda" else 1
    images = torch.randn(count, 64, 56, 56, generator=draw).to(device)

    @torch.inference_mode()
    def call() -> Tensor:
        answer: Tensor = network(images)
        return answer

    return call


def tuning() -> dict[str, str]:
    """Return the environment variables that change the speed of a network."""
    return {name: value for name, value in os.environ.items() if name.startswith(TUNING)}


def state(device: torch.device) -> State:
    """Return the reports of kernel and driver; missing values are left out.

    This process leaves the GPU idle for a moment before, so what the GPU does is for others.
    """
    report: State = {"time": time.time()}
    clocks = [
        float(line.split(":")[1])
        for line in _read(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("cpu MHz")
    ]
    if clocks:
        report["cpu_mhz"] = {"lowest": min(clocks), "highest": max(clocks)}
    governors = {_read(path).strip() for path in CPUS.glob("cpu*/cpufreq/scaling_governor")}
    if governors:
        report["governors"] = sorted(governors)
    throttled = [_read(p).strip() for p in CPUS.glob("cpu*/thermal_throttle/core_throttle_count")]
    if throttled:
        report["throttled"] = sum(int(count or 0) for count in throttled)
    if device.type == "cuda":
        time.sleep(REST)
        # an older driver lacks the counters of slow-downs, and then rejects the whole query
        reasons = [HELD_BACK + reason for reason in (*REASONS, POWER)]
        if gpu := _gpu(device, [*GPU, *reasons]) or _gpu(device, GPU):
            report["gpu"] = gpu
    return report


def watched(report: State) -> bool:
    """Whether a state includes GPU utilization; for a MIG partition no driver reports it."""
    return report.get("gpu", {}).get("utilization.gpu", "")[:1].isdigit()


def disturbed(before: State, after: State) -> Iterator[str]:
    """Yield the causes that slowed down the processor or the GPU between two states."""
    if after.get("throttled", 0) > before.get("throttled", 0):
        yield "the processor was slowed down by heat"
    first, last = before.get("gpu", {}), after.get("gpu", {})
    busy = max(_number(gpu, "utilization.gpu") / 100 for gpu in (first, last))
    if busy > BUSY:
        yield f"other processes used {busy:.0%} of the GPU"
    for reason in REASONS:
        spent = (_number(last, HELD_BACK + reason) - _number(first, HELD_BACK + reason)) / 1e6
        share = spent / (after["time"] - before["time"])
        if share > SLOWED:
            yield f"the GPU was slowed down for {share:.0%} of the time ({reason})"


def _gpu(device: torch.device, fields: Sequence[str]) -> dict[str, str]:
    uuid = torch.cuda.get_device_properties(device).uuid
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().split(", ")
    return dict(zip(fields, values, strict=False)) if done.returncode == 0 else {}


def _number(values: dict[str, str], field: str) -> float:
    """Return a value of the driver without its unit; 0 if it is missing."""
    try:
        return float(values[field].split()[0])
    except (KeyError, ValueError, IndexError):
        return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
