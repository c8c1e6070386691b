"""latency: time a batch of the fused network in several variants, of unfused, and of plain.

Reads the networks. Writes latency.json: every single time, confidence intervals, memory, variants
that could not be run and why, the machine, and disturbances of the measurement (`noise`). All
variants are timed in turn at all batch sizes in one process. So a drift of the machine affects all
equally, and a slow moment of some seconds affects only a small part of each variant's calls. Plain
is the architecture as usually built, with the same values: fused should take at most its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pipeline.contract.stage import Context
from pipeline.display.errors import UserError
from pipeline.records import rundir
from pipeline.records.environment import cores
from pipeline.records.environment import device as device_name
from pipeline.stages import earlier
from pipeline.stages.export.runtime import exact_float32
from pipeline.stages.timing import machine, measure, memory
from pipeline.stages.timing.interference import Neighbours, watched
from pipeline.stages.timing.measure import Paced, Timing
from pipeline.stages.timing.variants import Unavailable, Variant, infer, make

ALWAYS = ("fused", "unfused", "plain")
SHOWN = (50, 90, 95, 99)  # reported percentiles
PROBE = "probe"
# above these limits, the times say more about the machine than about the network
OTHERS = 0.05  # share of the cores' time
STOLEN = 0.02
DRIFT = 0.1  # relative difference between the medians of the first and the second half
GIVEN_UP = 60.0  # seconds after which the measurement is shortened on a machine that is too noisy
VARY = 2.0  # ratio of the 90th percentile to the median


def run(context: Context) -> dict[str, float]:
    """Time all variants at all batch sizes; return percentiles, throughput and `noisy`, 0 or 1."""
    settings = context.config.latency
    torch.set_num_threads(settings.threads or cores())
    exact_float32()  # `tf32` is a variant
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = earlier.images(context, "val", max(settings.batch_sizes)).to(device)
    way = _Way(context)
    bench = _Bench(context, way, images, *_available(context, way, images[:1]))
    before = machine.state(device)
    with watched() as neighbours:
        bench.time(partial(_vain, neighbours))
        bench.check()
        paced = bench.paced()
    after = machine.state(device)
    noise = [*_noise(neighbours, bench.timings), *machine.disturbed(before, after)]
    if bench.rounds < settings.repeats:
        noise.append(f"measuring ended early, after {bench.rounds} of {settings.repeats} rounds")
    details = {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "machine": {"before": before, "after": after, "tuning": machine.tuning()},
        "probe": bench.probe,
        "others": neighbours.others,
        "stolen": neighbours.stolen,
        "noise": noise,
        "skipped": bench.skipped,
        "computed_on": {name: variant.device for name, variant in bench.variants.items()},
        "largest_batch": bench.largest,
        "first_ms": {name: 1000 * v.first_seconds for name, v in bench.variants.items()},
        "peak_mib": bench.peaks,
        "intervals_ms": {key: _intervals(timing) for key, timing in bench.timings.items()},
        "open_loop": {"per_s": paced.rate, "seconds": paced.seconds},
        "seconds": {key: timing.seconds for key, timing in bench.timings.items()},
    }
    rundir.write_json(context.dir / "latency.json", details)
    for name, reason in bench.skipped.items():
        print(f"{name} skipped: {reason}")
    for name, variant in bench.variants.items():
        if variant.device != device.type:
            print(f"{name} ran on the {variant.device.upper()}")
    if device.type == "cuda" and not machine.watched(before):
        print("note: nvidia-smi reports nothing about this GPU; other processes on it go unnoticed")
    for reason in noise:
        print(f"noisy: {reason}")
    numbers = {
        name: v for key, timing in bench.timings.items() for name, v in _numbers(key, timing)
    }
    for percent in (50, 99):
        numbers[f"fused/open_p{percent}_ms"] = 1000 * Timing(paced.seconds).percentile(percent)
    numbers["probe_ms"] = 1000 * Timing(bench.probe).percentile(50)
    return {**numbers, **bench.agreements(), "noisy": float(bool(noise))}


class _Way:
    """Reports progress: first steps of unequal length, then calls of equal length with an eta.

    A step builds a network, calls it with its first batch, or warms up all networks. One step may
    take a hundred times as long as another, so their pace says nothing about the remaining time.
    """

    def __init__(self, context: Context) -> None:
        settings = context.config.latency
        self.names = list(dict.fromkeys([*ALWAYS, *settings.also]))
        self._context, self.repeats = context, settings.repeats
        self._steps = len(self.names) * (1 + len(settings.batch_sizes)) + 1
        self._step = self._called = 0
        self._since = 0.0

    def step(self, text: str) -> None:
        """Report the next step; raise `Interrupted` if a stop was requested."""
        self._context.check_stop()
        self._step += 1
        self._context.progress(0, 0, f"{text} ({self._step} of {self._steps})")

    def leave_out(self, count: int) -> None:
        """Count steps that will not be made as done."""
        self._step += count

    def called(self, text: str) -> None:
        """Report that a repeat is done: a round, or one of the requests after the rounds."""
        self._context.check_stop()
        now, made = time.monotonic(), self._called % self.repeats
        self._since = self._since if made else now
        eta = (self.repeats - 1 - made) * (now - self._since) / made if made else None
        self._called += 1
        self._context.progress(self._called, 2 * self.repeats, text, eta)


def _available(
    context: Context, way: _Way, image: Tensor
) -> tuple[dict[str, Variant], dict[str, str]]:
    """Return the variants that run on this machine, and for each other variant the reason."""
    variants: dict[str, Variant] = {}
    skipped: dict[str, str] = {}
    for name in way.names:
        way.step(f"building {name}")
        try:
            variants[name] = make(context, name, image)
        except Unavailable as error:
            skipped[name] = str(error)
            way.leave_out(len(context.config.latency.batch_sizes))
    return variants, skipped


@dataclass
class _Bench:
    """The variants, their input images, and the measurements."""

    context: Context
    way: _Way
    images: Tensor
    variants: dict[str, Variant]
    skipped: dict[str, str]
    timings: dict[str, Timing] = field(default_factory=dict)
    probe: list[float] = field(default_factory=list)  # seconds
    peaks: dict[str, float | None] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device of the measurement."""
        return self.images.device

    @property
    def rounds(self) -> int:
        """The number of times that each variant was timed."""
        return len(self.probe)

    def time(self, vain: Callable[[], bool]) -> None:
        """Time each variant at each batch size that the memory holds, and the machine itself.

        Args:
            vain: returns whether the machine is too noisy to continue for long.
        """
        settings = self.context.config.latency
        calls: dict[str, Callable[[], Tensor]] = {PROBE: machine.probe(self.device)}
        for batch in settings.batch_sizes:
            for name, variant in self.variants.items():
                self.way.step(f"first calls of {name}, batch {batch}")
                if self._fits(name, batch):
                    calls[f"{name}/b{batch}"] = partial(infer, variant.network, self._images(batch))
        self.way.step("warming up")
        rounds = measure.interleaved(calls, settings.repeats, self.device, vain)
        for found in rounds:
            self.probe = found.pop(PROBE).seconds
            self.timings = found
            self.way.called("rounds of timed calls")
        self.way.repeats = self.rounds  # fewer than configured if the machine is too noisy

    def check(self) -> None:
        """Check that the fused network was timed.

        Raises:
            UserError: no batch size of the fused network fits into memory.
        """
        if not any(key.startswith("fused/") for key in self.timings):
            raise UserError(
                f"latency.batch_sizes={self.context.config.latency.batch_sizes}: the memory holds "
                f"no such batch; the largest that fits is {self.largest['fused']}"
            )

    def paced(self) -> Paced:
        """Send single images to the fused network, at a share of the rate that it can handle."""
        call = partial(infer, self.variants["fused"].network, self._images(1))
        measure.warm_up(call, self.device)
        fastest = Timing([measure.seconds(call, self.device) for _ in range(self.rounds)])
        paced = Paced(self.context.config.latency.load / fastest.percentile(50))
        for _ in paced.run(call, self.rounds, self.device):
            self.way.called("paced requests")
        return paced

    def agreements(self) -> dict[str, float]:
        """Return the percentage of timed images on which each variant agrees with fused."""
        images = self._images(max(self.context.config.latency.batch_sizes))
        first = {
            name: infer(variant.network, images).argmax(1)
            for name, variant in self.variants.items()
            if variant.comparable and name not in self.largest
        }
        return {
            f"{name}/agreement": 100 * (found == first["fused"]).double().mean().item()
            for name, found in first.items()
            if name != "fused" and "fused" in first
        }

    def _images(self, batch: int) -> Tensor:
        """Return a batch of so many images, repeated if there are fewer."""
        return self.images[torch.arange(batch, device=self.device) % len(self.images)]

    def _fits(self, name: str, batch: int) -> bool:
        """Call once and record the memory; if it does not fit, find the largest batch that does."""
        if name in self.largest:
            return batch <= self.largest[name]
        network, images = self.variants[name].network, self._images(batch)
        try:
            call = partial(infer, network, images)
            call()  # the first call takes memory for a compiler or a library's workspace
            peak = None if name == "cuda_graphs" else memory.peak(call, self.device)
            self.peaks[f"{name}/b{batch}"] = peak  # a graph reserves its memory earlier
        except Exception as error:
            if not memory.exceeded(error):
                raise
            held = [size for size in range(batch) if f"{name}/b{size}" in self.peaks]
            below = max(held, default=0)
            self.largest[name] = memory.largest_batch(partial(self._runs, name), below, batch)
            print(f"{name}: no memory for batch {batch}; {self.largest[name]} is the largest")
            return False
        return True

    def _runs(self, name: str, batch: int) -> bool:
        try:
            infer(self.variants[name].network, self._images(batch))
        except Exception as error:
            if not memory.exceeded(error):
                raise
            return False
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return True


def _vain(neighbours: Neighbours) -> bool:
    """Whether other processes have disturbed the measurement for so long that it is shortened."""
    neighbours.update()
    noisy = neighbours.others > OTHERS or neighbours.stolen > STOLEN
    return noisy and neighbours.seconds > GIVEN_UP


def _noise(neighbours: Neighbours, timings: dict[str, Timing]) -> Iterator[str]:
    """Yield the reasons to distrust the times."""
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
    cold = [key for key, timing in timings.items() if not timing.stable]
    if cold:
        yield f"the warm-up did not converge ({', '.join(cold)})"


def _numbers(key: str, timing: Timing) -> list[tuple[str, float]]:
    batch = int(key.rpartition("/b")[2])
    percentiles = [(f"{key}/p{p}_ms", 1000 * timing.percentile(p)) for p in SHOWN]
    return [*percentiles, (f"{key}/images_per_s", batch / timing.percentile(50))]


def _intervals(timing: Timing) -> dict[str, list[float | None]]:
    """Return the 95 % confidence interval of each percentile, milliseconds."""
    return {
        f"p{p}": [None if end is None else 1000 * end for end in timing.interval(p)] for p in SHOWN
    }
