"""Decide which groups get a star: those better, by a paired test, than all that cost no more.

Two groups are compared over their common seeds, in cost and accuracy, and only if both count cost
in steps of the same plain network.
"""

from __future__ import annotations

import statistics

from pipeline.compare.groups import Group
from pipeline.compare.settings import identity
from pipeline.compare.statistics import LEVEL, Pairs, holm, paired
from pipeline.config.base import Values


def unit(settings: Values) -> str:
    """Return what defines a plain step: network, image size and batch size, as one text."""
    keys = ("data.image_size", "train.batch_size")
    return identity({k: v for k, v in settings.items() if k in keys or k.startswith("model.")})


def mark(groups: list[Group]) -> None:
    """Set `pareto` on the groups that get a star."""
    priced = [group for group in groups if group.cost_by_seed.keys() == group.top1_by_seed.keys()]
    claims = {group.label: _claim(group, priced) for group in priced}
    holm([claim for claim in claims.values() if claim])
    for group in priced:
        claim = claims[group.label]
        group.pareto = claim is not None and _holds(claim) and _agrees(group, priced)


def _claim(group: Group, others: list[Group]) -> Pairs | None:
    """Return the weakest of the tests that a star needs; None if one of them is missing.

    The cheapest group needs no such test, only one against any more expensive group.
    """
    cheaper, tested = [], False
    for other in others:
        if other is group or unit(other.settings) != unit(group.settings):
            continue
        seeds = group.top1_by_seed.keys() & other.top1_by_seed.keys()
        if _costs_more(other, group, seeds):
            tested = tested or paired(group.top1_by_seed, other.top1_by_seed).p is not None
            continue
        if not _means(group, other, seeds):
            return None
        cheaper.append(other)
    if not cheaper:
        return Pairs([], 1.0, p=0.0) if tested else None
    pairs = [paired(group.top1_by_seed, other.top1_by_seed) for other in cheaper]
    if any(pair.p is None for pair in pairs):
        return None
    return max(pairs, key=lambda pair: pair.p or 0.0)


def _costs_more(one: Group, other: Group, seeds: set[int]) -> bool:
    """Whether `one` costs more than `other`: over common seeds, or over all if there are none."""
    if not seeds:
        means = [statistics.fmean(group.cost_by_seed.values()) for group in (one, other)]
        return means[0] > means[1]
    return sum(one.cost_by_seed[s] for s in seeds) > sum(other.cost_by_seed[s] for s in seeds)


def _means(one: Group, other: Group, seeds: set[int]) -> bool:
    """Whether both have at least two seeds in common and `one` has the higher mean over them."""
    return len(seeds) > 1 and sum(one.top1_by_seed[s] - other.top1_by_seed[s] for s in seeds) > 0


def _holds(claim: Pairs) -> bool:
    return claim.p_holm is not None and claim.p_holm < LEVEL and (claim.difference or 0.0) > 0


def _agrees(group: Group, priced: list[Group]) -> bool:
    """Whether the group beats the baseline, or the baseline costs more or does not compare."""
    baseline = next((other for other in priced if other.versus is None), None)
    if baseline is None or group.versus is None or unit(baseline.settings) != unit(group.settings):
        return True
    if _costs_more(baseline, group, set(group.versus.seeds)):
        return True
    return group.versus.verdict == "better"
