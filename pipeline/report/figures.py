"""How figures of a page look, and those of the training: inline SVG whose text stays text.

Each is drawn for a column of about 520 pixels, so that it is legible in a narrow window and two
stand side by side in a wide one. Colours are those of Okabe and Ito: the colour-blind tell them
apart.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.display.outside import line
from pipeline.display.thinning import shown
from pipeline.report.run_data import Story

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8a8f98", "#22262b"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a name may hold dollars
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
    "grid.color": "#e6e8eb",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}


def training(story: Story) -> dict[str, Markup]:
    """Return the figures of the training there is data for."""
    found = {}
    with matplotlib.rc_context(STYLE):
        if story.epochs:
            found["accuracy"] = accuracy(story)
            found["loss"] = loss(story)
        if story.growth:
            found["growth"] = growth(story)
            if any("step_cost" in row for row in story.epochs):
                found["cost"] = cost(story)
            found["saliency"] = saliency(story)
    return found


def accuracy(story: Story) -> Markup:
    """Draw validation accuracy by epoch, with the adjustments."""
    figure, axes = canvas("Validation accuracy (%)")
    rows = _drawn(story)
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row["top1"] for row in rows], "o-", ms=3.5, color=BLUE)
    best = max(row["top1"] for row in story.epochs)
    axes.annotate(f"best {best:.2f}", (0.99, 0.06), xycoords="axes fraction", ha="right")
    _mark_events(axes, story)
    return svg(figure, "Validation top-1 accuracy by epoch; growing and cutting are marked")


def loss(story: Story) -> Markup:
    """Draw training loss by step and validation loss by epoch."""
    figure, axes = canvas("Loss")
    per_epoch = story.epochs[0]["step"]
    steps = [row["step"] / per_epoch for row in story.steps]
    axes.plot(steps, [row["loss"] for row in story.steps], color=GREY, lw=0.7, label="train, step")
    rows = _drawn(story)
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row["loss"] for row in rows], color=BLUE, label="train, epoch")
    axes.plot(epochs, [row["val_loss"] for row in rows], "--", color=ORANGE, label="validation")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    _mark_events(axes, story)
    return svg(figure, "Training and validation loss by epoch; growing and cutting are marked")


def _drawn(story: Story) -> list[dict[str, Any]]:
    """Return the epochs that a curve shows."""
    return [row for row in story.epochs if shown(row["epoch"])]


def growth(story: Story) -> Markup:
    """Draw the branches of each layer over time: layers are rows, thickness counts branches."""
    figure, axes = canvas("Branches by layer", height=0.9 + 0.32 * len(story.layers))
    last = story.epochs[-1]["epoch"] if story.epochs else story.growth[-1]["epoch"]
    for row, layer in enumerate(story.layers):
        axes.plot([0, last], [row, row], color="#d5d9de", lw=2, solid_capstyle="round")
        events = [event for event in story.growth if event["layer"] == layer]
        ends = [event["epoch"] for event in events[1:]] + [last]
        for event, end in zip(events, ends, strict=False):
            count = len(event["branches"])
            axes.plot([event["epoch"], end], [row, row], color=BLUE, lw=2 * count, zorder=2,
                      solid_capstyle="butt")  # fmt: skip
            if end - event["epoch"] > last / 5:
                text, colour = (f"{count} branches", "white") if count > 4 else (f"{count}", INK)
                axes.text(event["epoch"] + last / 30, row, text, fontsize=8, color=colour,
                          va="center_baseline", zorder=3)  # fmt: skip
            marker, colour = ("^", BLUE) if event["action"] == "grow" else ("v", ORANGE)
            axes.plot(event["epoch"], row, marker, ms=9, color=colour, mec="white", zorder=4)
    axes.set_yticks(range(len(story.layers)), [_shortened(layer) for layer in story.layers])
    axes.set_ylim(len(story.layers) - 0.4, -0.6)
    axes.set_xlim(0, last + 0.3)
    axes.grid(axis="y", visible=False)
    return svg(figure, "Which layers grew branches, and when")


def cost(story: Story) -> Markup:
    """Draw what a step cost in each epoch, in steps of the plain network."""
    figure, axes = canvas("Cost of a step (plain steps)")
    rows = [row for row in story.epochs if "step_cost" in row]
    ends, costs = [row["epoch"] for row in rows], [row["step_cost"] for row in rows]
    axes.stairs(costs, [ends[0] - 1, *ends], baseline=None, color=BLUE, lw=2)
    axes.axhline(1, color=GREY, lw=1, ls="--")
    axes.annotate(f"last {costs[-1]:.2f}", (0.99, 0.9), xycoords="axes fraction", ha="right")
    axes.set_ylim(0, 1.25 * max(costs))
    _mark_events(axes, story)
    return svg(figure, "What a step of the network cost by epoch, in steps of the plain network")


def saliency(story: Story) -> Markup:
    """Draw the ranking that led to each growth: share of the best score, by layer."""
    events = [event for event in story.growth if event["saliency"]]
    height = 0.9 + 0.32 * len(story.layers)
    title = "Saliency at each growth (share of the highest)"
    figure, axes = canvas(title, xlabel="growth after epoch", height=height)
    grid = [[_share(dict(event["saliency"]), layer) for event in events] for layer in story.layers]
    axes.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=1.15)
    for row, layer in enumerate(story.layers):
        for column, event in enumerate(events):
            value = grid[row][column]
            text = "–" if value != value else f"{value:.2f}"
            chosen = event["layer"] == layer
            axes.text(column, row, text + (" ▲" if chosen else ""), ha="center", va="center",
                      fontsize=8, weight="bold" if chosen else "normal",
                      color="white" if value > 0.7 else INK)  # fmt: skip
    axes.set_xticks(range(len(events)), [str(event["epoch"]) for event in events])
    axes.set_yticks(range(len(story.layers)), [_shortened(layer) for layer in story.layers])
    axes.grid(visible=False)
    return svg(figure, "Saliency of each layer when one was chosen to grow")


def _share(scores: dict[str, float], layer: str) -> float:
    highest = max(scores.values())
    return scores[layer] / highest if layer in scores and highest > 0 else float("nan")


def _shortened(layer: str) -> str:
    name = line(layer).replace(".branches.", " › ").removesuffix(".conv")
    return name if len(name) <= 44 else f"…{name[-43:]}"  # a long one leaves no room to draw in


def _mark_events(axes: Axes, story: Story) -> None:
    top = axes.get_xaxis_transform()
    for epoch in sorted({event["epoch"] for event in story.growth}):
        events = [event for event in story.growth if event["epoch"] == epoch]
        axes.axvline(epoch, color=GREY, lw=0.8, ls=":")
        signs = "".join("▲" if event["action"] == "grow" else "▼" for event in events)
        text = f"{signs} {_shortened(events[0]['layer'])}"
        axes.text(epoch, 1.015, text, transform=top, fontsize=7.5, ha="center", va="bottom")


def canvas(title: str, xlabel: str = "epoch", height: float = 2.9) -> tuple[Figure, Any]:
    """Return a figure of the width of a column, and its axes."""
    figure = Figure(figsize=(5.4, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def svg(figure: Figure, label: str) -> Markup:
    """Return a figure as SVG that scales with its column; `label` tells those who cannot see it."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))
