"""Time calls: warmed up, synchronised, variants interleaved, percentiles instead of means.

Interleaving makes a slow phase of the machine affect all variants equally, so their ratios stay
valid even if the times do not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from scipy.stats import binom

WINDOW_SECONDS = 0.2  # length of a window of a warm-up, which is compared with the previous one
WINDOW_CALLS = 3
STABLE = 0.05  # largest change between windows after warm-up
SETTLE_SECONDS = 0.003
LONG = 0.1  # seconds; calls that take longer need no untimed calls before
PATIENCE = 10.0  # seconds of warm-up after which the variant is timed anyway
FEW = 5  # rounds, at most, on a machine that is too noisy
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one variant; `stable`: whether its warm-up converged."""

    seconds: list[float]
    stable: bool = True

    def percentile(self, percent: float) -> float:
        """Return a percentile in seconds, interpolated linearly."""
        return torch.tensor(self.seconds, dtype=torch.float64).quantile(percent / 100).item()

    def interval(self, percent: float) -> tuple[float | None, float | None]:
        """Return the 95 % confidence interval of a percentile, in seconds, from order statistics.

        It is valid for any distribution. An end is None with too few calls: the 99th percentile has
        no upper end below 368 calls.
        """
        ordered, count = sorted(self.seconds), len(self.seconds)
        tail = (1 - CONFIDENCE) / 2
        low = int(binom.ppf(tail, count, percent / 100)) - 1
        high = int(binom.ppf(1 - tail, count, percent / 100))
        return (
            ordered[low] if low >= 0 else None,
            ordered[high] if high < count else None,
        )

    @property
    def drift(self) -> float:
        """Difference of the medians of the first and second half, relative to the lower one."""
        middle = len(self.seconds) // 2
        first, second = Timing(self.seconds[:middle]), Timing(self.seconds[middle:])
        medians = first.percentile(50), second.percentile(50)
        return max(medians) / min(medians) - 1


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    vain: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Timing]]:
    """Time every variant `repeats` times in rounds of random order; yield after each round.

    If `vain` returns that the machine is too noisy to continue for long, the remaining warm-ups are
    short, and there are no more than `FEW` rounds.

    Each variant is called for some milliseconds before it is timed: until then threads of the
    previous variant still spin on the cores, and its weights fill the caches.
    """
    order = random.Random(0)
    stable = {name: warm_up(call, device, short=vain()) for name, call in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for made in range(repeats):
        if made >= FEW and vain():
            return
        for name in order.sample(list(variants), len(variants)):
            if not times[name] or times[name][-1] < LONG:
                _settle(variants[name], device)
            times[name].append(seconds(variants[name], device))
        yield {name: Timing(found, stable[name]) for name, found in times.items()}


def _settle(call: Callable[[], object], device: torch.device) -> None:
    end = time.perf_counter() + SETTLE_SECONDS
    while time.perf_counter() < end:
        call()
        _synchronise(device)  # calls are queued on a GPU much faster than they are executed


def warm_up(call: Callable[[], object], device: torch.device, short: bool = False) -> bool:
    """Call until the median is stable; return whether it became stable in time."""
    until = time.perf_counter() + (0.0 if short else PATIENCE)
    before = _window(call, device)
    while time.perf_counter() < until:
        now = _window(call, device)
        if abs(now / before - 1) <= STABLE:
            return True
        before = now
    return False


def _window(call: Callable[[], object], device: torch.device) -> float:
    """Return the median of a window of calls."""
    found: list[float] = []
    end = time.perf_counter() + WINDOW_SECONDS
    while time.perf_counter() < end or len(found) < WINDOW_CALLS:
        found.append(seconds(call, device))
    return Timing(found).percentile(50)


@dataclass
class Paced:
    """Requests that arrive at a fixed rate, whether or not the last one is answered (open loop).

    `seconds` are measured from the scheduled arrival to the answer, so queueing counts, and so does
    the wake-up of an idle processor.
    """

    rate: float  # requests per second
    seconds: list[float] = field(default_factory=list)

    def run(self, call: Callable[[], object], count: int, device: torch.device) -> Iterator[Timing]:
        """Make `count` requests; yield after each."""
        start = time.perf_counter()
        for number in range(count):
            due = start + number / self.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            call()
            _synchronise(device)
            self.seconds.append(time.perf_counter() - due)
            yield Timing(self.seconds)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, until the device has finished it."""
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
