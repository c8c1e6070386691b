"""Honest timing: warmed up, synchronised, variants interleaved, percentiles instead of means.

Interleaving lets a slow moment of the machine hit every variant alike, so that their ratios hold
even where the times do not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

WARMUP_SECONDS = 0.5


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one variant."""

    seconds: list[float]

    def percentile(self, percent: float) -> float:
        """Return a percentile in seconds, interpolated linearly."""
        return torch.tensor(self.seconds, dtype=torch.float64).quantile(percent / 100).item()

    @property
    def drift(self) -> float:
        """How far the medians of the first and the second half are apart, relative to the lower."""
        middle = len(self.seconds) // 2
        first, second = Timing(self.seconds[:middle]), Timing(self.seconds[middle:])
        medians = first.percentile(50), second.percentile(50)
        return max(medians) / min(medians) - 1


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> Iterator[dict[str, Timing]]:
    """Time every variant `repeats` times in rounds of random order; yield after each round."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for call in variants.values():
        _warm_up(call, device)
    for _ in range(repeats):
        for name in order.sample(list(variants), len(variants)):
            times[name].append(_time(variants[name], device))
        yield {name: Timing(seconds) for name, seconds in times.items()}


def _warm_up(call: Callable[[], object], device: torch.device) -> None:
    until = time.perf_counter() + WARMUP_SECONDS
    while time.perf_counter() < until:
        _time(call, device)


def _time(call: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
