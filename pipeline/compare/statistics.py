"""Compute means over seeds with their uncertainty, and paired tests."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05


@dataclass(frozen=True)
class Mean:
    """A mean over `n` runs, and its 95 % interval by Student's t; one run has no interval."""

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


def mean(values: Sequence[float]) -> Mean | None:
    """Return mean, standard deviation and interval; None without values."""
    if len(values) < 2:
        return Mean(1, values[0]) if values else None
    middle, std = statistics.fmean(values), statistics.stdev(values)
    half = _quantile(len(values) - 1) * std / math.sqrt(len(values))
    return Mean(len(values), middle, std, middle - half, middle + half)


@dataclass
class Pairs:
    """Differences of two groups, ours minus theirs, seed by seed.

    Args:
        seeds: the seeds that both groups have.
        p: p-value of a two-sided paired t-test; None if the test is not possible.
        p_holm: `p`, corrected by Holm's method for the number of tests made together.
    """

    seeds: list[int]
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """The conclusion that the test allows, in words."""
        if len(self.seeds) < 2:
            return f"{len(self.seeds)} common seed{'s' * (len(self.seeds) != 1)}: no test"
        if self.p_holm is None:
            return "the same in every pair" if not self.difference else "no spread: no test"
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "better" if (self.difference or 0.0) > 0 else "worse"


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Pairs:
    """Compare two groups on the seeds they have in common.

    Differences without any variance have no meaningful p: they get None.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    average = mean(differences)
    if average is None:
        return Pairs(seeds)
    pairs = Pairs(seeds, average.mean, average.low, average.high)
    if average.std is not None and average.std > 1e-9:
        from scipy.special import stdtr

        score = average.mean / (average.std / math.sqrt(average.n))
        pairs.p = 2 * float(stdtr(average.n - 1, -abs(score)))
    return pairs


def holm(tests: list[Pairs]) -> None:
    """Fill in `p_holm`, because among many tests some are significant by chance (Holm, 1979)."""
    made = sorted((test for test in tests if test.p is not None), key=lambda test: test.p or 0.0)
    highest = 0.0
    for rank, test in enumerate(made):
        highest = max(highest, min(1.0, (len(made) - rank) * (test.p or 0.0)))
        test.p_holm = highest


@functools.cache
def _quantile(freedom: int) -> float:
    """Return the half width of the 95 % interval, in standard errors."""
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    return float(stdtrit(freedom, 1 - LEVEL / 2))
