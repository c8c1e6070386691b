"""Draw the figures of a page as inline SVG: text stays text, and curves can be hovered.

Each figure is drawn for a column of about 520 pixels: it is legible in a narrow window, and a wide
window shows two side by side. The colours are those of Okabe and Ito, which colour-blind readers
can tell apart. The SVG names them as variables of `style.css`, which also adapts them to a dark
page.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.display.outside import line

PALETTE = {
    "ink": "#22262b", "grey": "#8a8f98", "grid": "#e6e8eb", "rail": "#d5d9de", "paper": "#ffffff",
    "blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "pink": "#cc79a7",
    "yellow": "#e69f00", "sky": "#56b4e9",
}  # fmt: skip
INK, GREY, GRID, RAIL, PAPER, BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = PALETTE.values()
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a name may contain dollar signs
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 16,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}
HOVERED = 400  # at most so many points of a curve can be hovered
DPI = 72  # of Matplotlib's SVG: one unit of a figure is one of the drawing


@dataclass(frozen=True)
class Curve:
    """Points of a figure that show their numbers under the pointer.

    `texts` holds a text for each point, shown instead of its `y`.
    """

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str] = ()


def canvas(title: str, xlabel: str = "epoch", height: float = 2.9) -> tuple[Figure, Any]:
    """Return a figure as wide as a column, and its axes."""
    figure = Figure(figsize=(5.4, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def within_percent(axes: Axes, which: str = "y") -> None:
    """End an axis of percentages at 0 and 100; a marker at an end needs `clip_on=False`."""
    low, high = getattr(axes, f"get_{which}lim")()
    getattr(axes, f"set_{which}lim")(max(0.0, low), min(100.0, high))


def svg(figure: Figure, label: str, curves: Sequence[Curve] = ()) -> Markup:
    """Return a figure as SVG that scales with its column; screen readers read `label`."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for name, colour in PALETTE.items():
        text = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var(--{name})", text)
    hover = f' tabindex="0" data-hover="{escape(_hover(figure, curves))}"' if curves else ""
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"{hover}', 1))


def _hover(figure: Figure, curves: Sequence[Curve]) -> str:
    """Return the data of `page.js` as JSON: for each curve, positions in the drawing and texts."""
    axes, (_, height) = figure.axes[0], figure.get_size_inches() * DPI
    names = {colour: f"var(--{name})" for name, colour in PALETTE.items()}
    found = []
    for curve in curves:
        rows = list(zip(curve.x, curve.y, curve.texts or map(_number, curve.y), strict=True))
        rows = [row for row in rows if math.isfinite(row[1])][:: 1 + len(rows) // HOVERED]
        points: Any = axes.transData.transform([row[:2] for row in rows]) if rows else []
        points = [
            [round(px, 1), round(height - py, 1), _number(x), line(text)]
            for (px, py), (x, _, text) in zip(points, rows, strict=True)
        ]
        named = {"name": line(curve.name), "colour": names[curve.colour], "points": points}
        found.append(named)
    return json.dumps({"x": line(axes.get_xlabel()), "curves": found})


def _number(value: float) -> str:
    return f"{value:.4g}"
