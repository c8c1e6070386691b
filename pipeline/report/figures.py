"""Draw the figures of a training: accuracy, loss, learning rate, growth and cost."""

from __future__ import annotations

import math

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes

from pipeline.display.outside import line
from pipeline.display.thinning import shown
from pipeline.report.canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PAPER,
    RAIL,
    STYLE,
    Curve,
    canvas,
    svg,
    within_percent,
)
from pipeline.report.growth import Change
from pipeline.report.run_data import Story


def training(story: Story) -> dict[str, Markup]:
    """Return the figures of the training for which there is data."""
    found = {}
    with matplotlib.rc_context(STYLE):
        if story.epochs:
            found["accuracy"] = accuracy(story)
            found["loss"] = loss(story)
            found["rate"] = rate(story)
        if story.growth:
            found["growth"] = growth(story)
            if any("step_cost" in row for row in story.epochs):
                found["cost"] = cost(story)
    return found


def accuracy(story: Story) -> Markup:
    """Draw validation accuracy by epoch, with the adjustments."""
    figure, axes = canvas("Validation accuracy (%)")
    curve = _by_epoch(story, "top1", "top-1 %", BLUE)
    axes.plot(curve.x, curve.y, "o-", ms=3.5, color=BLUE, clip_on=False)
    within_percent(axes)
    best = max(row["top1"] for row in story.epochs)
    axes.annotate(f"best {best:.2f}", (0.99, 0.06), xycoords="axes fraction", ha="right")
    events = _mark_events(axes, story)
    label = "Validation top-1 accuracy by epoch; growing and cutting are marked"
    return svg(figure, label, [curve, *events])


def loss(story: Story) -> Markup:
    """Draw training loss by step and by epoch, and validation loss by epoch."""
    figure, axes = canvas("Loss")
    epochs, losses = _by_step(story, "loss")
    axes.plot(epochs, losses, color=GREY, lw=0.7, label="train, step")
    train = _by_epoch(story, "loss", "train", BLUE)
    validation = _by_epoch(story, "val_loss", "validation", ORANGE)
    axes.plot(train.x, train.y, color=BLUE, label="train, epoch")
    axes.plot(validation.x, validation.y, "--", color=ORANGE, label="validation")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    events = _mark_events(axes, story)
    label = "Training and validation loss by epoch; growing and cutting are marked"
    return svg(figure, label, [train, validation, *events])


def rate(story: Story) -> Markup:
    """Draw the learning rate by step."""
    figure, axes = canvas("Learning rate")
    epochs, rates = _by_step(story, "lr")
    axes.plot(epochs, rates, color=BLUE, lw=1.5)
    axes.set_ylim(bottom=0)
    curve = Curve("learning rate", BLUE, epochs, rates)
    return svg(figure, "Learning rate by epoch", [curve])


def _by_epoch(story: Story, key: str, name: str, colour: str) -> Curve:
    rows = [row for row in story.epochs if shown(row["epoch"])]
    return Curve(name, colour, [row["epoch"] for row in rows], [_drawn(row[key]) for row in rows])


def _by_step(story: Story, key: str) -> tuple[list[float], list[float]]:
    """Return the positions of the steps, in epochs, and the metric `key` at each."""
    per_epoch = story.epochs[0]["step"]
    drawn = [_drawn(row[key]) for row in story.steps]
    return [row["step"] / per_epoch for row in story.steps], drawn


def _drawn(value: float | None) -> float:
    """Return a number of the history as a curve has it: a gap for one that was not finite."""
    return math.nan if value is None else value


def growth(story: Story) -> Markup:
    """Draw the branches of each layer over time: layers are rows, thickness counts branches."""
    figure, axes = canvas("Branches by layer", height=0.9 + 0.32 * len(story.layers))
    last = story.epochs[-1]["epoch"] if story.epochs else story.growth[-1]["epoch"]
    curves = []
    for row, layer in enumerate(story.layers):
        axes.plot([0, last], [row, row], color=RAIL, lw=2, solid_capstyle="round")
        events = [event for event in story.growth if event["layer"] == layer]
        ends = [event["epoch"] for event in events[1:]] + [last]
        for event, end in zip(events, ends, strict=False):
            _draw_branches(axes, event, end, row, last)
        texts = [" ".join(event["branches"]) for event in events]
        epochs = [event["epoch"] for event in events]
        curves.append(Curve(shortened(layer), BLUE, epochs, [row] * len(events), texts))
    axes.set_yticks(range(len(story.layers)), [shortened(layer) for layer in story.layers])
    axes.set_ylim(len(story.layers) - 0.4, -0.6)
    axes.set_xlim(0, last + 0.3)
    axes.grid(axis="y", visible=False)
    return svg(figure, "Which layers grew branches, and when", curves)


def _draw_branches(axes: Axes, event: Change, end: float, row: int, last: float) -> None:
    """Draw the branches of a layer from an adjustment to the next."""
    start, count = event["epoch"], len(event["branches"])
    axes.plot([start, end], [row, row], color=BLUE, lw=2 * count, zorder=2,
              solid_capstyle="butt")  # fmt: skip
    if end - start > last / 5:
        text, colour = (f"{count} branches", PAPER) if count > 4 else (f"{count}", INK)
        axes.text(start + last / 30, row, text, fontsize=8, color=colour,
                  va="center_baseline", zorder=3)  # fmt: skip
    marker, colour = ("^", BLUE) if event["action"] == "grow" else ("v", ORANGE)
    axes.plot(start, row, marker, ms=9, color=colour, mec=PAPER, zorder=4)


def cost(story: Story) -> Markup:
    """Draw the cost of a step in each epoch, in steps of the plain network."""
    figure, axes = canvas("Cost of a step (plain steps)")
    rows = [row for row in story.epochs if "step_cost" in row]
    ends, costs = [row["epoch"] for row in rows], [row["step_cost"] for row in rows]
    axes.stairs(costs, [ends[0] - 1, *ends], baseline=None, color=BLUE, lw=2)
    axes.axhline(1, color=GREY, lw=1, ls="--")
    axes.annotate(f"last {costs[-1]:.2f}", (0.99, 0.9), xycoords="axes fraction", ha="right")
    axes.set_ylim(0, 1.25 * max(costs))
    events = _mark_events(axes, story)
    label = "What a step of the network cost by epoch, in steps of the plain network"
    return svg(figure, label, [Curve("plain steps", BLUE, ends, costs), *events])


def shortened(layer: str) -> str:
    """Return the path of a layer, shortened to leave room for the drawing."""
    name = line(layer).replace(".branches.", " › ").removesuffix(".conv")
    return name if len(name) <= 44 else f"…{name[-43:]}"


def _mark_events(axes: Axes, story: Story) -> list[Curve]:
    """Mark the adjustments above the axes; return points that name the layers they changed."""
    above = axes.get_xaxis_transform()
    top = axes.get_ylim()[1]
    curves = []
    for action, sign, colour, height in (("grow", "▲", BLUE, 1.03), ("cut", "▼", ORANGE, 1.075)):
        layers: dict[int, list[str]] = {}
        for event in story.growth:
            if (event["action"] == "grow") == (action == "grow"):
                layers.setdefault(event["epoch"], []).append(shortened(event["layer"]))
        for epoch in layers:
            axes.axvline(epoch, color=GREY, lw=0.8, ls=":")
            axes.text(epoch, height, sign, transform=above, fontsize=7.5, color=colour,
                      ha="center")  # fmt: skip
        texts = [", ".join(names) for names in layers.values()]
        curves.append(Curve(f"{sign} {action}", colour, list(layers), [top] * len(layers), texts))
    return curves
