"""Make the tables of the report, which can be scanned, copied, and scrolled in a narrow window."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pipeline.config.base import Values
from pipeline.report.figures import shortened
from pipeline.report.growth import Change
from pipeline.report.run_data import Story, short

RANKED = 3  # layers shown beside the one that grew
LEGIBLE = 30  # classes up to which a confusion matrix can be read


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map: `share` of the highest value sets its shade; `marked` is bold."""

    text: str
    share: float = 0.0
    marked: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A table whose cells are shaded."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def all_of(story: Story) -> dict[str, object]:
    """Return the tables of a report by name; a table without data is None or empty."""
    return {
        "training": training(story),
        "saliency": saliency(story),
        "sizes": sizes(story),
        "confusion": confusion(story),
    }


def training(story: Story) -> list[tuple[str, str]]:
    """Return network, recipe, device and time of the training, as name and value."""
    recipe = story.settings.get("train", {})
    rows = [
        ("network", story.settings.get("model", {}).get("name")),
        ("epochs", recipe.get("epochs")),
        ("images per step", recipe.get("batch_size")),
        ("optimizer", recipe.get("optimizer")),
        ("learning rate", _rate(recipe)),
        ("precision", recipe.get("precision")),
    ]
    if done := story.results.get("train"):
        device = done.environment.get("device")
        took = str(timedelta(seconds=round(done.seconds)))
        attempts = f" in {done.attempts} attempts" if done.attempts > 1 else ""
        rows += [("device", device), ("time", took + attempts)]
    return [(name, str(value)) for name, value in rows if value is not None]


def _rate(recipe: Values) -> str | None:
    if "lr" not in recipe:
        return None
    schedule = recipe.get("schedule")
    return f"{recipe['lr']}" + (f", {schedule}" if schedule else "")


def saliency(story: Story) -> HeatMap | None:
    """Return the ranking that led to each growth: the grown layer, and the best of the others."""
    events = [event for event in story.growth if event["saliency"]]
    rows = [(str(event["epoch"]), _ranked(event)) for event in events]
    others = max((len(cells) - 1 for _, cells in rows), default=0)
    columns = ["grown", *[f"other {number}" for number in range(1, others + 1)]]
    return HeatMap(columns, rows) if rows else None


def _ranked(event: Change) -> list[Cell]:
    """Return the layer that grew and the `RANKED` others with the highest saliency."""
    scores = dict(event["saliency"] or [])
    highest = max(scores.values())
    others = sorted(scores.keys() - {event["layer"]}, key=lambda layer: -scores[layer])
    cells = []
    for layer in [event["layer"], *others[:RANKED]]:
        share = scores.get(layer, 0.0) / highest if highest > 0 else 0.0
        cells.append(Cell(f"{shortened(layer)} {share:.2f}", share, layer == event["layer"]))
    return cells


def sizes(story: Story) -> list[tuple[str, str, str]]:
    """Return parameters and FLOPs, each as name, unfused value and fused value."""
    rows = []
    for key, what in (("parameters", "parameters"), ("flops", "FLOPs of an image")):
        before, after = story.metric("fuse", f"{key}_unfused"), story.metric("fuse", key)
        if before is not None and after is not None:
            rows.append((what, short(before), short(after)))
    return rows


def confusion(story: Story) -> HeatMap | None:
    """Return the confusion matrix of the fused network; None if it has too many classes."""
    counts = story.judged.get("confusion")
    if not counts or len(counts) > LEGIBLE:
        return None
    names = [str(name) for name in story.judged["classes"]]
    rows = [
        (name, [_counted(n, sum(row), i != j) for j, n in enumerate(row)])
        for i, (name, row) in enumerate(zip(names, counts, strict=True))
    ]
    return HeatMap(names, rows)


def _counted(images: int, of: int, wrong: bool) -> Cell:
    return Cell(str(images) if images else "", images / max(1, of), wrong and images > 0)
