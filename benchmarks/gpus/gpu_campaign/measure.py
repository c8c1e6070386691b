"""Time calls in turn (A B A B …), in another order each round, so that a slow moment hits all."""

from __future__ import annotations

import random
import statistics
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import PROJECT
from benchmarks.gpu_campaign.loops import DEVICE
from pipeline.stages.timing import memory
from pipeline.stages.timing.measure import seconds

Loop = Callable[[int], None]


def built(
    makers: Mapping[str, Callable[[], Loop]], skip: Callable[[str, str], None], steps: int
) -> tuple[dict[str, Loop], dict[str, dict[str, Any]]]:
    """Make loops and run each twice; return the working loops, and facts about the first runs.

    Args:
        makers: the functions that make loops, by name.
        skip: called with the name of each loop that failed, and the reason.
        steps: steps of a run.
    """
    loops: dict[str, Loop] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        try:
            loop = make()
            first = seconds(partial(loop, steps), DEVICE)
            loop(steps)
            peak = memory.peak(partial(_done, loop, steps), DEVICE)
        except Exception as error:  # e.g. no memory, a failing compiler, a missing package
            skip(name, gist(error))
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
            continue
        loops[name] = loop
        facts[name] = {"first_seconds": round(first, 2), "peak_mib": peak and round(peak)}
    return loops, facts


def _done(loop: Loop, steps: int) -> None:
    loop(steps)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def gist(error: Exception) -> str:
    """Return an error as a line, with the place in this project that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(PROJECT) in f.filename]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    first = (str(error).strip() or "no word").splitlines()[0]
    return f"{type(error).__name__}: {first[:300]}{place}"


def in_turn(loops: Mapping[str, Loop], steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds per step of each loop, round by round."""
    order = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name in order.sample(list(loops), len(loops)):
            found[name].append(seconds(partial(loops[name], steps), DEVICE) / steps)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return lowest, median and highest of the values of all rounds."""
    rounded = {"lowest": min(values), "median": statistics.median(values), "highest": max(values)}
    return {name: float(f"{value:.5g}") for name, value in rounded.items()}


def ratios(times: Mapping[str, list[float]], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the speed of the first loop of each pair relative to the second, over the rounds."""
    return {
        f"{one} / {other}": spread([b / a for a, b in zip(times[one], times[other], strict=True)])
        for one, other in pairs
        if one in times and other in times
    }


def rates(times: Mapping[str, list[float]], batch: int) -> dict[str, Any]:
    """Return the images per second of each loop."""
    return {name: spread([batch / value for value in values]) for name, values in times.items()}


def synchronisations(loop: Loop, steps: int) -> dict[str, Any] | None:
    """Return the number and places of the host's waits for the GPU in some steps; None on CPU."""
    if DEVICE.type != "cuda":
        return None
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loop(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)
    return {"steps": steps, "waits": len(waits), "per_step": len(waits) / steps,
            "places": dict(places.most_common(5))}  # fmt: skip
