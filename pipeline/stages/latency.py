"""latency: seconds per batch of the fused, the unfused and the plain network, side by side.

Reads the networks. Writes latency.json: every single time, the device and the load it was under.
Plain is the architecture as usually built, with fresh weights: fused should take the same time.
"""

from __future__ import annotations

import os
from functools import partial

import torch
from torch import Tensor, nn

from pipeline import measure, networks, rundir
from pipeline.environment import device as device_name
from pipeline.stage import Context

SHOWN = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99}


def run(context: Context) -> dict[str, float]:
    """Time all variants at all batch sizes; return percentiles and throughput."""
    settings = context.config.latency
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    variants = {
        "fused": networks.fused(context),
        "unfused": networks.trained(context),
        "plain": networks.plain(context).eval(),
    }
    for network in variants.values():
        network.to(device)
    load_before = os.getloadavg()[0]
    timings = _all_timings(context, variants, device)
    facts = {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "seconds": {key: timing.seconds for key, timing in timings.items()},
    }
    rundir.write_json(context.dir / "latency.json", facts)
    return {name: value for key, t in timings.items() for name, value in _numbers(key, t)}


def _all_timings(
    context: Context, variants: dict[str, nn.Module], device: torch.device
) -> dict[str, measure.Timing]:
    settings = context.config.latency
    total = settings.repeats * len(settings.batch_sizes)
    found: dict[str, measure.Timing] = {}
    for number, batch in enumerate(settings.batch_sizes):
        images = networks.validation_images(context, batch).to(device)
        images = images[torch.arange(batch) % len(images)]
        calls = {name: partial(_infer, model, images) for name, model in variants.items()}
        rounds = measure.interleaved(calls, settings.repeats, device)
        for done, timings in enumerate(rounds, start=1):
            context.check_stop()
            context.progress(number * settings.repeats + done, total, f"batch {batch}")
            found |= {f"{name}/b{batch}": timing for name, timing in timings.items()}
    return found


@torch.inference_mode()
def _infer(model: nn.Module, images: Tensor) -> Tensor:
    result: Tensor = model(images)
    return result


def _numbers(key: str, timing: measure.Timing) -> list[tuple[str, float]]:
    batch = int(key.rpartition("/b")[2])
    percentiles = [(f"{key}/{n}", 1000 * timing.percentile(p)) for n, p in SHOWN.items()]
    return [*percentiles, (f"{key}/images_per_s", batch / timing.percentile(50))]
