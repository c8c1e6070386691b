"""Plan the runs and their order: the most informative first, so that a partial study is useful.

The first seeds choose the learning rate of an arm. If the best rate is the smallest or the largest
that was tried, another one is tried beyond it. The other seeds then run at the best rate alone.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.growth_study.arms import ARMS, FIRST
from benchmarks.growth_study.networks import NETWORKS
from benchmarks.growth_study.shelf import Run

RATES = (0.05, 0.1, 0.2)
SLOWEST, FASTEST = 0.00625, 1.6
CHOOSING = (0, 1, 2)  # seeds that choose the learning rate
JUDGING = tuple(range(3, 12))
SECONDS = 120.0  # assumed time of a run of plain, until one is finished

Rows = Mapping[Run, dict[str, Any]]


def wanted(
    rows: Rows, networks: Iterable[str] = NETWORKS, arms: Iterable[str] = ARMS
) -> Iterator[Run]:
    """Return the missing runs of some arms that can be made, most informative first."""
    early, late = ([arm for arm in arms if (arm in FIRST) is first] for first in (True, False))
    for network in networks:
        for group in filter(None, (early, late)):
            for run in [*_choosing(rows, network, group), *_judging(rows, network, group)]:
                if run not in rows and (ARMS[run.arm].like is None or model_run(rows, run) in rows):
                    yield run


def missing(rows: Rows) -> int:
    """Return a lower bound of the missing runs of the whole study, including those that wait."""
    per_arm = len(RATES) * len(CHOOSING) + len(JUDGING)
    lacking = 0
    for network in NETWORKS:
        for arm in ARMS:
            there = [run for run in rows if (run.network, run.arm) == (network, arm)]
            runs = [*_choosing(rows, network, [arm]), *_judging(rows, network, [arm])]
            lacking += max(per_arm - len(there), sum(run not in rows for run in runs))
    return lacking


def _choosing(rows: Rows, network: str, arms) -> list[Run]:
    return [
        Run(network, arm, rate, seed)
        for seed in CHOOSING
        for place in range(max(len(rates(rows, network, arm)) for arm in arms))
        for arm in arms
        for rate in rates(rows, network, arm)[place : place + 1]
    ]


def _judging(rows: Rows, network: str, arms) -> list[Run]:
    best = {arm: best_rate(rows, network, arm) for arm in arms}
    return [
        Run(network, arm, rate, seed)
        for seed in JUDGING
        for arm, rate in best.items()
        if rate is not None
    ]


def rates(rows: Rows, network: str, arm: str) -> list[float]:
    """Return the rates to try: `RATES`, and more until the best has a neighbour on each side.

    None is below `SLOWEST` or above `FASTEST`.
    """
    tried = list(RATES)
    while (best := _best(rows, network, arm, tried)) in (tried[0], tried[-1]):
        beyond = best / 2 if best == tried[0] else best * 2
        if not SLOWEST <= beyond <= FASTEST:
            break
        tried = sorted([*tried, beyond])
    return tried


def best_rate(rows: Rows, network: str, arm: str) -> float | None:
    """Return the rate of the highest mean over the choosing seeds; None while runs are missing."""
    return _best(rows, network, arm, rates(rows, network, arm))


def best_so_far(rows: Rows, network: str, arm: str) -> float | None:
    """Return the rate of the highest mean over the choosing seeds that are finished."""
    found: dict[float, list[float]] = {}
    for run, row in rows.items():
        if (run.network, run.arm) == (network, arm) and run.seed in CHOOSING:
            found.setdefault(run.rate, []).append(row["accuracy"])
    return max(found, key=lambda rate: statistics.fmean(found[rate])) if found else None


def _best(rows: Rows, network: str, arm: str, tried: list[float]) -> float | None:
    means = {rate: choosing_mean(rows, network, arm, rate) for rate in tried}
    known = {rate: mean for rate, mean in means.items() if mean is not None}
    return max(known, key=known.__getitem__) if len(known) == len(tried) else None


def choosing_mean(rows: Rows, network: str, arm: str, rate: float) -> float | None:
    """Return the accuracy at a rate, over the choosing seeds; None while one is missing."""
    runs = [Run(network, arm, rate, seed) for seed in CHOOSING]
    if not all(run in rows for run in runs):
        return None
    return statistics.fmean(rows[run]["accuracy"] for run in runs)


def model_run(rows: Rows, run: Run) -> Run | None:
    """Return the run whose final structure this run begins with; None if there is none."""
    like = ARMS[run.arm].like
    rate = best_rate(rows, run.network, like) if like else None
    return Run(run.network, like, rate, run.seed) if like and rate else None


def seconds(rows: Rows, run: Run) -> float:
    """Estimate the seconds of a run: from runs of its arm, or else from those of plain."""

    def known(arm: str) -> list[float]:
        same = (run.network, arm)
        return [row["seconds"] for r, row in rows.items() if (r.network, r.arm) == same]

    if own := known(run.arm):
        return statistics.median(own)
    return ARMS[run.arm].budget * (statistics.median(known("plain")) if known("plain") else SECONDS)
