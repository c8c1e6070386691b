"""Draw the figures of a comparison, in the style of the report."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipeline.compare.collect import Run
from pipeline.compare.groups import Answer, Group
from pipeline.compare.table import interval
from pipeline.display.errors import UserError
from pipeline.display.outside import line, say
from pipeline.records import rundir, schemas
from pipeline.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    STYLE,
    YELLOW,
    Curve,
    canvas,
    svg,
    within_percent,
)

ROWS = 24  # groups with an interval, at most
LINES = 6  # groups with a curve, at most: more cannot be told apart
POINTS = 300  # epochs of a curve, at most
NAMED = 8  # with more points than that, only the two ends of the front have room for their numbers
COLOURS = (BLUE, ORANGE, GREEN, PINK, YELLOW, INK)
EPOCH = b'"kind": "epoch"'


def all_of(answer: Answer, runs: list[Run]) -> dict[str, Markup]:
    """Return every figure for which the runs have data."""
    found = {}
    with matplotlib.rc_context(STYLE):
        if answer.groups:
            found["accuracy"] = accuracy(answer)
        if any(group.cost for group in answer.groups):
            found["cost"] = cost(answer)
        histories = {run.name: run.history for run in runs if run.history}
        drawn = [(g, _curves(g, histories)) for g in answer.groups[:LINES]]
        if any(curves for _, curves in drawn):
            found["curves"] = curves_of(drawn)
    return found


def accuracy(answer: Answer) -> Markup:
    """Draw each group's mean with its interval, and its seeds."""
    groups = answer.groups[:ROWS]
    figure, axes = canvas("Fused top-1 (%)", xlabel="", height=0.9 + 0.3 * len(groups))
    curves = []
    for row, group in enumerate(groups):
        colour = ORANGE if group.label == answer.baseline else BLUE
        seeds = list(group.top1_by_seed.values())
        axes.plot(seeds, [row] * len(seeds), "|", ms=9, color=GREY, zorder=1, clip_on=False)
        if group.top1.half is not None:
            axes.errorbar(group.top1.mean, row, xerr=group.top1.half, color=colour, capsize=3)
        axes.plot(group.top1.mean, row, "o", ms=5, color=colour, zorder=3, clip_on=False)
        texts = [f"top-1 {interval(group.top1)} %"]
        curves.append(Curve(_short(group.label), colour, [group.top1.mean], [row], texts))
    axes.set_yticks(range(len(groups)), [_short(group.label) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    within_percent(axes, "x")
    label = "Fused top-1 accuracy of each group with its 95 percent interval"
    return svg(figure, label, curves)


def cost(answer: Answer) -> Markup:
    """Draw accuracy against cost, and mark the groups that have a star."""
    xlabel = f"{answer.cost_unit} of training, mean of a run"
    figure, axes = canvas("Fused top-1 (%) against cost", xlabel=xlabel)
    numbers = {g.label: n for n, g in enumerate(answer.groups, start=1)}
    points = [(g.cost.mean, g.top1.mean, g) for g in answer.groups if g.cost]
    others = [point for point in points if not point[2].pareto]
    front = sorted((point for point in points if point[2].pareto), key=lambda point: point[0])
    axes.plot([x for x, _, _ in others], [y for _, y, _ in others], "o", ms=5, color=GREY,
              clip_on=False)  # fmt: skip
    axes.plot([x for x, _, _ in front], [y for _, y, _ in front], "*--", ms=10, lw=1, color=BLUE,
              clip_on=False)  # fmt: skip
    middle = sum(axes.get_xlim()) / 2
    named = [*front, *others] if len(points) <= NAMED else [*front[:1], *front[1:][-1:]]
    for (x, y), at in itertools.groupby(sorted(named, key=_point), key=_point):
        text = ", ".join(str(numbers[group.label]) for _, _, group in at)
        side = (6, "left") if x <= middle else (-6, "right")  # numbers stay inside the axes
        axes.annotate(text, (x, y), xytext=(side[0], 6), ha=side[1], fontsize=8,
                      textcoords="offset points")  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(y=0.15)
    within_percent(axes)
    curves = []
    for x, y, group in points:
        name = _short(f"{numbers[group.label]} {group.label}")
        curves.append(Curve(name, BLUE if group.pareto else GREY, [x], [y], [f"{y:.2f} %"]))
    return svg(figure, f"Accuracy against {answer.cost_unit} of training, with stars", curves)


def _point(point: tuple[float, float, Group]) -> tuple[float, float]:
    return point[:2]


def curves_of(drawn: list[tuple[Group, list[dict[int, float]]]]) -> Markup:
    """Draw validation accuracy by epoch: mean and range of the seeds."""
    figure, axes = canvas("Validation top-1 (%) by epoch", height=3.4)
    hovered = []
    for (group, curves), colour in zip(drawn, COLOURS, strict=False):
        if not curves:
            continue
        common = sorted(set.intersection(*(set(curve) for curve in curves)))
        epochs = common[:: max(1, len(common) // POINTS)]
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        means = [sum(v) / len(v) for v in values]
        axes.plot(epochs, means, color=colour, label=_short(group.label), clip_on=False)
        hovered.append(Curve(_short(group.label), colour, epochs, means))
        axes.fill_between(epochs, [min(v) for v in values], [max(v) for v in values],
                          color=colour, alpha=0.15, lw=0)  # fmt: skip
    axes.legend(loc="lower right", fontsize=8)
    within_percent(axes)
    return svg(figure, "Validation accuracy by epoch, mean and range over seeds", hovered)


def _curves(group: Group, histories: dict[str, Path]) -> list[dict[int, float]]:
    read = [_epochs(histories[name]) for name in group.runs if name in histories]
    return [curve for curve in read if curve]


def _epochs(history: Path) -> dict[int, float]:
    """Return accuracy by epoch, without parsing the rows of steps: nearly all of the file."""
    try:
        with rundir.reading(history) as lines:
            rows: list[dict[str, Any]] = [
                json.loads(line) for line in lines if EPOCH in line and line.endswith(b"\n")
            ]
        for row in rows:
            schemas.record(rundir.HISTORY, row)
        return {row["epoch"]: float(row["top1"]) for row in rows if row.get("top1") is not None}
    except FileNotFoundError:
        return {}
    except (UserError, ValueError, TypeError, OverflowError, RecursionError) as error:
        say(f"note: a curve is left out: {history}: {error}")
        return {}


def _short(label: str) -> str:
    label = line(label)
    return label if len(label) <= 44 else f"{label[:43]}…"
