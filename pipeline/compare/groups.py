"""Define groups of runs that differ only in their seed, and the answer of a comparison.

The terminal, the JSON file and the page all show the contents of one `Answer`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from pipeline.compare.statistics import Mean, Pairs
from pipeline.config.base import Flat


@dataclass(kw_only=True)
class Group:
    """Runs that differ only in their seed.

    Args:
        top1: fused, percent on the validation images.
        cost: work of a training, in steps of its plain network; None if no run recorded it.
        hours: time of training, in the `time_unit` of the answer.
        pareto: whether the group gets a star; see `pipeline.compare.front`.
        latency_ms: of the fused network, by batch size: the median of the runs' medians.
        noisy: number of runs that were timed on an unsteady machine.
        layers: by layer, the number of runs that grew branches on it.
        versus: comparison with the baseline on common seeds; None for the baseline itself.
    """

    label: str
    settings: Flat
    runs: list[str]
    top1_by_seed: dict[int, float]
    top1: Mean
    unfused_top1: Mean | None
    val_loss: Mean | None
    cost: Mean | None
    hours: Mean | None
    cost_by_seed: dict[int, float] = field(default_factory=dict)
    pareto: bool = False
    sizes: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[int, float] = field(default_factory=dict)
    noisy: int = 0
    layers: dict[str, int] = field(default_factory=dict)
    versus: Pairs | None = None


@dataclass(kw_only=True)
class Answer:
    """The result of a comparison: groups, best first, with tests, costs and notes."""

    title: str
    data: str
    cost_unit: str
    time_unit: str
    baseline: str | None
    groups: list[Group]
    left_out: list[dict[str, str]]
    differ: dict[str, dict[str, Any]]
    notes: list[str]

    def to_json(self) -> str:
        """Return the whole answer as JSON, with the verdicts in words."""
        tree = dataclasses.asdict(self)
        for group, row in zip(self.groups, tree["groups"], strict=True):
            if group.versus:
                row["versus"] |= {"n": len(group.versus.seeds), "verdict": group.versus.verdict}
        return json.dumps(tree, indent=2, allow_nan=False)
