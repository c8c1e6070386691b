"""Time inference with the shipped network: fused, compiled, as CUDA graph, in bfloat16.

`unfused` has DBB's branches on every convolution. `fused` is the result of `dyrep.fuse`, with batch
norms folded. `plain` is the network without branches, as it is trained. Calls are timed one by one,
in rounds of random order, as in the stage `latency`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import dyrep
from benchmarks.gpu_campaign import measure
from benchmarks.gpu_campaign.loops import DEVICE
from benchmarks.gpu_campaign.report import Report, Request
from benchmarks.gpu_campaign.steps import tasks
from pipeline.stages.timing import memory
from pipeline.stages.timing.measure import interleaved

BATCHES = (1, 64)
Network = Callable[[Tensor], Tensor]


def run(request: Request, report: Report) -> None:
    for name, task in tasks(request.small).items():
        for batch in BATCHES[:1] if request.small else BATCHES:
            key = f"{name} b{batch}"
            if report.fits(key, 30):
                images = torch.randn(batch, 3, task.size, task.size, device=DEVICE)
                makers = dict(variants(task.network().float(), images))
                ready = dict(working(makers, images, partial(report.skip_of, key)))
                report.add(key, timed(ready, images, 10 if request.small else 40))


def variants(plain: nn.Module, images: Tensor) -> Iterator[tuple[str, Callable[[], Network]]]:
    """Yield the function that makes each network, by the network's name."""
    unfused = copy.deepcopy(plain)
    dyrep.expand(unfused, absorb=images[:1])
    for network in (plain, unfused):
        gather_statistics(network, images)
    fused = dyrep.fuse(unfused, inputs=images[:2]).eval()
    half = copy.deepcopy(fused).to(torch.bfloat16, memory_format=torch.channels_last)
    yield "fused", lambda: fused
    yield "unfused", lambda: unfused
    yield "plain", lambda: plain
    yield "compiled", lambda: torch.compile(copy.deepcopy(fused), dynamic=False)
    yield "bfloat16", lambda: partial(in_bfloat16, half)
    yield "bfloat16 compiled", lambda: partial(in_bfloat16, torch.compile(half, dynamic=False))
    if DEVICE.type == "cuda":
        yield (
            "cuda_graphs",
            lambda: torch.compile(copy.deepcopy(fused), mode="reduce-overhead", dynamic=False),
        )


@torch.no_grad()
def gather_statistics(network: nn.Module, images: Tensor) -> None:
    """Set the norms' statistics from their inputs; otherwise activations would overflow."""
    shown = torch.randn(max(2, len(images)), *images.shape[1:], device=DEVICE)
    for _ in range(30):
        network.train()(shown)
    network.eval()


def in_bfloat16(network: Network, images: Tensor) -> Tensor:
    return network(images.to(torch.bfloat16, memory_format=torch.channels_last)).float()


def working(makers, images: Tensor, skip) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield a call of each network that can be run, by name."""
    for name, make in makers.items():
        try:
            call = torch.inference_mode()(partial(make(), images))
            call()
            yield name, call
        except Exception as error:  # e.g. a failing compiler, or no memory
            skip(name, measure.gist(error))


def timed(calls: dict[str, Callable[[], Tensor]], images: Tensor, repeats: int) -> dict:
    """Return medians, 90th percentiles, ratios and memory."""
    peaks = {name: memory.peak(call, DEVICE) for name, call in calls.items()}
    *_, found = interleaved(calls, repeats, DEVICE)
    usual = found["fused"].percentile(50)
    return {
        "p50_ms": {name: 1000 * t.percentile(50) for name, t in found.items()},
        "p90_ms": {name: 1000 * t.percentile(90) for name, t in found.items()},
        "faster_than_fused": {name: usual / t.percentile(50) for name, t in found.items()},
        "peak_mib": peaks,
        "unsteady": [name for name, t in found.items() if not t.stable],
    }
