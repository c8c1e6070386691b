"""Draw the figures of the shipped network: latency, throughput, accuracy and reliability."""

from __future__ import annotations

from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from pipeline.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    STYLE,
    YELLOW,
    Curve,
    canvas,
    svg,
    within_percent,
)
from pipeline.report.run_data import Story

COLOURS = {"fused": GREEN, "unfused": ORANGE, "compiled": BLUE, "onnx": PINK, "int8": YELLOW,
           "plain": GREY, "plain_folded": GREY}  # fmt: skip
DASHED = ("plain_folded", "channels_last", "torchscript")
FAR = 20  # times: latencies further apart than that are drawn on a logarithmic axis
NAMES = (  # where a point's name may stand: its offset, points, and its alignment
    (0, 6, "center", "bottom"), (0, -6, "center", "top"),
    (7, 0, "left", "center"), (-7, 0, "right", "center"),
    (5, 4, "left", "bottom"), (-5, 4, "right", "bottom"),
    *((0, y, "center", "top") for y in range(-17, -120, -11)),
)  # fmt: skip


def figures(story: Story) -> dict[str, Markup]:
    """Return the figures for which there is data."""
    found = {}
    with matplotlib.rc_context(STYLE):
        if len(story.batches) > 1:  # a single batch size makes no curve
            found["latency"] = latency(story)
            found["throughput"] = throughput(story)
        if any(way.top1 is not None for way in story.ways):
            found["plane"] = plane(story)
        if story.judged:
            found["reliability"] = reliability(story)
    return found


def latency(story: Story) -> Markup:
    """Draw the median latency of a batch by batch size, with its 95 % confidence interval."""
    figure, axes = canvas("Latency of a batch (ms)", xlabel="batch size", height=3.3)
    for way in story.ways:
        for batch, ms in way.ms.items():
            ends = story.timed.get("intervals_ms", {}).get(f"{way.name}/b{batch}", {}).get("p50")
            if ends and None not in ends:
                axes.plot([batch, batch], ends, color=_colour(way.name), lw=3, alpha=0.35)
            axes.plot(batch, ms, "o", ms=3.5, color=_colour(way.name))
        axes.plot(list(way.ms), list(way.ms.values()), **_line(way.name))
    _logarithmic(axes, "y")
    curves = [
        Curve(way.name, _colour(way.name), list(way.ms), list(way.ms.values()),
              [f"{ms:.3g} ms" for ms in way.ms.values()])
        for way in story.ways
    ]  # fmt: skip
    label = "Median latency by batch size, one line per variant"
    return _by_batch(figure, axes, story, label, curves)


def throughput(story: Story) -> Markup:
    """Draw images per second by batch size."""
    figure, axes = canvas("Throughput (images per second)", xlabel="batch size", height=3.3)
    curves = []
    for way in story.ways:
        rates = [1000 * batch / ms for batch, ms in way.ms.items()]
        axes.plot(list(way.ms), rates, marker="o", ms=3.5, **_line(way.name))
        texts = [f"{rate:,.0f} /s" for rate in rates]
        curves.append(Curve(way.name, _colour(way.name), list(way.ms), rates, texts))
    _logarithmic(axes, "y")
    label = "Throughput by batch size, one line per variant"
    return _by_batch(figure, axes, story, label, curves)


def plane(story: Story) -> Markup:
    """Draw accuracy against latency at the smallest batch: up and to the left is better."""
    batch = min(story.batches)
    figure, axes = canvas(f"Accuracy against latency at batch {batch}", xlabel="median ms")
    axes.set_ylabel("top-1 %")
    axes.set_title(axes.get_title("left"), pad=24)  # above the names of those at 100 %
    points = [(w.ms[batch], w.top1, w.name) for w in story.ways if w.top1 is not None]
    curves = []
    for ms, top1, name in sorted(points):
        axes.plot(ms, top1, "o", ms=7, color=_colour(name), clip_on=False)
        curves.append(Curve(name, _colour(name), [ms], [top1], [f"{top1:.2f} %"]))
    axes.margins(x=0.15)
    lowest, highest = min(top1 for _, top1, _ in points), max(top1 for _, top1, _ in points)
    around = max(1.0, 0.35 * (highest - lowest))
    axes.set_ylim(lowest - around, highest + around)
    times = [ms for ms, *_ in points]
    if max(times) > FAR * min(times):
        _logarithmic(axes, "x")
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(AutoLocator())
    within_percent(axes)
    _name_points(figure, axes, sorted(points))
    label = "Top-1 accuracy against median latency of each way to run the network"
    return svg(figure, label, curves)


def _name_points(figure: Figure, axes: Any, points: list[tuple[float, float, str]]) -> None:
    """Write each point's name beside it, where it meets no axis, point or other name."""
    figure.draw_without_rendering()  # drawing fixes the positions of the points
    area = axes.get_window_extent()
    dots = [axes.transData.transform(point[:2]) for point in points]
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for ms, top1, name in points:
        for x, y, sideways, upright in NAMES:
            text = axes.annotate(
                name, (ms, top1), xytext=(x, y), textcoords="offset points",
                ha=sideways, va=upright, fontsize=8, in_layout=False,
            )  # fmt: skip
            box = text.get_window_extent()
            inside = area.x0 < box.x0 and box.x1 < area.x1 and area.y0 < box.y0
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box.expanded(1.05, 1.0))
                break
            text.remove()  # if no place is free, the name is still shown under the pointer


def reliability(story: Story) -> Markup:
    """Draw the accuracy of the fused network against its confidence."""
    figure, axes = canvas("Calibration of the fused network", xlabel="confidence %", height=3.3)
    bins = story.judged["reliability"]["fused"]
    axes.plot([0, 100], [0, 100], "--", color=GREY, lw=1)
    total = sum(one["images"] for one in bins)
    sure, right = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
    axes.plot(sure, right, color=BLUE, lw=1, clip_on=False)
    sizes = [20 + 400 * one["images"] / total for one in bins]
    axes.scatter(sure, right, s=sizes, color=BLUE, alpha=0.6, lw=0, clip_on=False)
    axes.set_ylabel("right %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    error = story.metric("eval", "fused/ece") or 0.0
    text = f"expected calibration error {error:.1f} %"
    axes.annotate(text, (0.98, 0.05), xycoords="axes fraction", ha="right")
    texts = [f"{one['accuracy']:.1f} % of {one['images']} images" for one in bins]
    label = "Share of right predictions by confidence; the dashed line is perfect"
    return svg(figure, label, [Curve("right", BLUE, sure, right, texts)])


def _by_batch(figure: Figure, axes: Any, story: Story, label: str, curves: list[Curve]) -> Markup:
    axes.set_xscale("log")
    axes.set_xticks(story.batches, [str(batch) for batch in story.batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(ncols=4, loc="outside lower center", fontsize=8)
    return svg(figure, label, curves)


def _logarithmic(axes: Any, which: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def _colour(name: str) -> str:
    return COLOURS.get(name, SKY)


def _line(name: str) -> dict[str, str | float]:
    style = ":" if name == "plain" else "--" if name in DASHED else "-"
    return {"color": _colour(name), "lw": 1.3, "ls": style, "label": name}
