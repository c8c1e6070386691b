"""Render the answer as one HTML file that opens offline: plots, and tables sorted by a click."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.compare import figures, table
from pipeline.compare.collect import ACCURACY, Run
from pipeline.compare.groups import Answer
from pipeline.config.base import written
from pipeline.report import render as fill


def render(answer: Answer, runs: list[Run]) -> str:
    """Return the page."""
    return fill(
        "compare/template.html",
        answer=answer,
        headline=table.headline(answer),
        figures=figures.all_of(answer, runs),
        lines=figures.LINES,
        show=table,
        written=written,
        runs=_rows(answer, runs),
    )


@dataclass(frozen=True)
class Row:
    """A row of the page: a run; `numbers` are fused and unfused top-1, validation loss, hours."""

    name: str
    group: str
    seed: int | str
    state: str
    why: str
    numbers: list[float | None]


def _rows(answer: Answer, runs: list[Run]) -> list[Row]:
    """Return one row per run, whether it counts or not."""
    groups = {name: group.label for group in answer.groups for name in group.runs}
    left_out = {row["run"]: row for row in answer.left_out}
    return [
        Row(
            name=run.name,
            group=groups.get(run.name, "–"),
            seed=run.seed if run.settings else "–",
            state=left_out[run.name]["state"] if run.name in left_out else "counted",
            why=left_out[run.name]["why"] if run.name in left_out else "",
            numbers=[
                run.metrics.get(ACCURACY),
                run.metrics.get("eval/unfused/top1"),
                run.metrics.get("train/val_loss"),
                run.gpu_hours if answer.time_unit == "GPU-hours" else run.wall_hours,
            ],
        )
        for run in runs
    ]
