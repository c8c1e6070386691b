"""Compare runs that are in W&B: read them with its public API, and publish a report there.

In W&B, a run of the pipeline has its whole configuration, and the metrics of its stages as
`stage/metric` in its summary. `WANDB_PROJECT` (default: dyrep) and `WANDB_ENTITY` (default: the
account's) name the project and the entity.
"""

from __future__ import annotations

import os
from typing import Any

from pipeline.compare import table
from pipeline.compare.collect import ACCURACY, Run, finite
from pipeline.compare.groups import Answer
from pipeline.config import WHERE, Config, completed, flatten
from pipeline.display.errors import UserError
from pipeline.display.outside import markdown

ASKED = Config.model_fields.keys() - {"seed", *WHERE}
PATIENCE = 15  # seconds to wait for W&B's answer
CURE = "was it sent there, and is this the project (WANDB_PROJECT, WANDB_ENTITY)?"


def read(names: list[str], group: str | None) -> list[Run]:
    """Return the runs of a group, or the named runs.

    Raises:
        UserError: W&B does not answer, or has no such run.
    """
    import wandb

    try:
        api = wandb.Api(timeout=PATIENCE)
        filters = {"group": group} if group else {"display_name": {"$in": names}}
        runs = [_run(found) for found in api.runs(_project(), filters=filters, lazy=False)]
    except (wandb.Error, ValueError, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"W&B: {why} Without --online the run directories are read") from None
    there = {run.name for run in runs}
    for name in names:
        if name not in there:
            raise UserError(f"W&B's {_project()} has no run '{name}'; {CURE}")
    if not runs:
        raise UserError(f"W&B's {_project()} has no run of group '{group}'; {CURE}")
    return runs


def _run(found: Any) -> Run:
    tree = {key: _section(value) for key, value in dict(found.config).items() if key in ASKED}
    metrics = dict(finite(dict(found.summary)))
    run = Run(
        name=found.name,
        seed=found.config.get("seed", 0),
        settings=flatten(completed(tree)),
        metrics=metrics,
        gpu_hours=metrics.get("train/gpu_hours") or None,
        wall_hours=metrics["train/seconds"] / 3600 if "train/seconds" in metrics else None,
    )
    if found.state != "finished":
        run.state, run.why = found.state, "as W&B says"
    elif ACCURACY not in metrics:
        run.state, run.why = "not evaluated", f"its summary has no {ACCURACY}"
    return run


def _section(value: Any) -> Any:
    """Return a section of the configuration; W&B's own sweeps record only its name."""
    return {"name": value} if isinstance(value, str) else value


def publish(answer: Answer, group: str | None, names: list[str]) -> str:
    """Make a report of the answer in W&B; return a line with its URL, or why it was not made."""
    import wandb_workspaces.reports.v2 as reports

    try:
        report = _report(reports, answer, group, names)
        report.save()
    except Exception as error:  # the answer is already printed; a failed report only adds a note
        return f"note: W&B made no report: {error}"
    return f"report: {report.url}"


def _report(reports: Any, answer: Answer, group: str | None, names: list[str]) -> Any:
    entity, _, project = _project().rpartition("/")
    where = {"project": project} | ({"entity": entity} if entity else {})
    runs = reports.Runset(
        **where, filters=f"Group == {group!r}" if group else f"Name in {names!r}", name=answer.title
    )
    panels = [
        reports.LinePlot(x="epoch", y=["epoch/top1"]),
        reports.ScatterPlot(x="train/seconds", y=ACCURACY),
        reports.RunComparer(diff_only="split"),
    ]
    return reports.Report(
        **where,
        title=f"Comparison of {answer.title}"[:128],
        description=table.headline(answer),
        blocks=[
            reports.MarkdownBlock(text=_markdown(answer)),
            reports.PanelGrid(runsets=[runs], panels=panels),
        ],
    )


def _markdown(answer: Answer) -> str:
    rows = [
        "| group | n | top-1 fused | difference | p (Holm) | verdict | plain steps | time |",
        "|---" * 8 + "|",
    ]
    for group in answer.groups:
        pairs = group.versus
        rows.append(
            f"| {markdown(group.label)} | {group.top1.n} | {table.interval(group.top1)} "
            f"| {f'{pairs.difference:+.2f}' if pairs and pairs.difference is not None else '–'} "
            f"| {table.probability(pairs.p_holm if pairs else None)} "
            f"| {pairs.verdict if pairs else 'baseline'} "
            f"| {table.work(group.cost)} | {table.hours(group.hours)} {answer.time_unit} |"
        )
    out = [
        f"- {markdown(row['run'])}: {markdown(row['state'])} {markdown(row['why'])}"
        for row in answer.left_out
    ]
    return "\n".join([*rows, "", *(["Left out:", "", *out] if out else [])])


def _project() -> str:
    project = os.environ.get("WANDB_PROJECT", "dyrep")
    entity = os.environ.get("WANDB_ENTITY")
    return f"{entity}/{project}" if entity else project
