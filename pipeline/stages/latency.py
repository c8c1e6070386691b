"""latency: seconds per batch of the fused, the unfused and the plain network, side by side.

Reads the networks. Writes latency.json: every single time, the device, and what made the times
worth less (`noise`): neighbours on the same cores, a host that took time away, drift, variation.
Plain is the architecture as usually built, with fresh weights: fused should take the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from pipeline import measure, networks, rundir
from pipeline.environment import cores
from pipeline.environment import device as device_name
from pipeline.neighbours import Neighbours, watched
from pipeline.stage import Context

SHOWN = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99}
# above these, a time is no property of the network any more
OTHERS = 0.05  # share of the cores' time
STOLEN = 0.02
DRIFT = 0.1  # between the medians of the first and the second half
VARY = 2.0  # 90th percentile over the median


def run(context: Context) -> dict[str, float]:
    """Time all variants at all batch sizes; return percentiles, throughput and `noisy`, 0 or 1."""
    settings = context.config.latency
    torch.set_num_threads(settings.threads or cores())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    variants = {
        "fused": networks.fused(context),
        "unfused": networks.trained(context),
        "plain": networks.plain(context).eval(),
    }
    for network in variants.values():
        network.to(device)
    with watched() as neighbours:
        timings = _all_timings(context, variants, device)
    noise = list(_noise(neighbours, timings))
    facts = {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "others": neighbours.others,
        "stolen": neighbours.stolen,
        "noise": noise,
        "seconds": {key: timing.seconds for key, timing in timings.items()},
    }
    rundir.write_json(context.dir / "latency.json", facts)
    for reason in noise:
        print(f"noisy: {reason}")
    numbers = {name: value for key, t in timings.items() for name, value in _numbers(key, t)}
    return {**numbers, "noisy": float(bool(noise))}


def _noise(neighbours: Neighbours, timings: dict[str, measure.Timing]) -> Iterator[str]:
    """Yield what speaks against the times."""
    if neighbours.others > OTHERS:
        yield f"other processes used {neighbours.others:.0%} of these cores"
    if neighbours.stolen > STOLEN:
        yield f"the host took {neighbours.stolen:.0%} of their time away"
    drift, key = max((timing.drift, key) for key, timing in timings.items())
    if drift > DRIFT:
        yield f"times drifted by {drift:.0%} while they were taken ({key})"
    vary, key = max((t.percentile(90) / t.percentile(50), key) for key, t in timings.items())
    if vary > VARY:
        yield f"times vary: one in ten took {vary:.1f} times the median ({key})"


def _all_timings(
    context: Context, variants: dict[str, nn.Module], device: torch.device
) -> dict[str, measure.Timing]:
    settings = context.config.latency
    total = settings.repeats * len(settings.batch_sizes)
    found: dict[str, measure.Timing] = {}
    for number, batch in enumerate(settings.batch_sizes):
        images = networks.images(context, "val", batch).to(device)
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
