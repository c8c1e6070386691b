"""Read what a mirror sends from the files of a run; independent of wandb.

A row belongs to one training step: the step's metrics, those of the epoch that ended with it, and
the growth after it. Each step is yielded once, in order. Of a long training only some steps are
yielded: those that `display.thinning` keeps, ends of epochs that it keeps, and steps with growth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.base import STAGE_NAMES
from pipeline.display.masking import mask, masked
from pipeline.display.thinning import shown
from pipeline.records import rundir, schemas, spent, store
from pipeline.records.schemas import Event, Result, Run
from slurm.records import Event as Supervision

AXES = ("step", "epoch", "samples")
Row = dict[str, Any]


class Steps:
    """The rows of a training that its files hold so far; call `new` again for later rows."""

    def __init__(self, train: Path) -> None:
        self._history, self._growth = train / rundir.HISTORY, train / rundir.GROWTH
        self._offset, self._last = 0, 0
        self._pending: list[Row] = []  # all lines of the last step
        self.damaged: list[str] = []  # lines that could not be read

    def new(self, complete: bool) -> Iterator[Row]:
        """Yield the rows that were not yielded before.

        The last step is held back until the next step appears, or the training is `complete`.
        """
        grown = _by_step(self._growth)
        for line in self._lines():
            step = line["step"]
            if step < self._last or (step == self._last and not self._pending):
                continue  # a step repeated after a kill has the same numbers
            if step > self._last:
                yield from self._finished(grown)
                self._last = step
            self._pending.append(line)
        if complete:
            yield from self._finished(grown)

    def _finished(self, grown: dict[int, Row]) -> Iterator[Row]:
        lines, self._pending = self._pending, []
        if self._last in grown or any(map(_is_shown, lines)):
            row: Row = {}
            for line in lines:
                row |= _values(line)
            if row:
                yield row | grown.get(self._last, {})

    def _lines(self) -> Iterator[Row]:
        """Yield complete lines since the last call; from the start if the file was cut."""
        if not self._history.exists():
            return
        with self._history.open("rb") as file:
            if self._history.stat().st_size < self._offset:
                self._offset = 0  # a resumed training has removed the rows that were not saved
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"\n"):
                    self._offset += len(line)
                    if row := _row(line):
                        yield row
                    else:
                        self.damaged.append(f"{self._history} before byte {self._offset}")


def _row(line: bytes) -> Row | None:
    """Parse a line of the history; None if it is not a row."""
    try:
        row: Row = json.loads(line)
        schemas.record(rundir.HISTORY, row)
    except (ValueError, RecursionError):
        return None
    return row


def _is_shown(line: Row) -> bool:
    return shown(line["step"]) or (line["kind"] == "epoch" and shown(line["epoch"]))


def _values(line: Row) -> Row:
    """Return the metrics of a line of the history, by their names in W&B."""
    prefix = "train" if line["kind"] == "step" else "epoch"
    weights = line.pop("branch_weights", {})
    values = {f"{prefix}/{k}": v for k, v in line.items() if k not in (*AXES, "kind")}
    values |= {f"branch/{at}/{n}": w for at, ws in weights.items() for n, w in ws.items()}
    return values | {axis: line[axis] for axis in AXES if axis in line}


def _by_step(growth: Path) -> dict[int, Row]:
    """Return the growth events, by the step before them."""
    found: dict[int, Row] = {}
    for event in rundir.read_lines(growth):
        row = found.setdefault(event["step"], {"growth/grown": 0, "growth/cut": 0})
        row["growth/parameters"], row["growth/flops"] = event["parameters"], event["flops"]
        if event["action"] in ("grow", "cut"):
            row["growth/grown" if event["action"] == "grow" else "growth/cut"] += 1
        row |= {f"saliency/{layer}": value for layer, value in event["saliency"] or []}
    return found


def growth_table(train: Path) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of all growth events."""
    columns = ["epoch", "step", "action", "layer", "branches", "parameters", "flops"]
    events = rundir.read_lines(train / rundir.GROWTH)
    return columns, [
        [", ".join(map(str, e[c] or [])) if c == "branches" else e[c] for c in columns]
        for e in events
    ]


def checkpoint_table(train: Path) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the checkpoints that are kept."""
    columns = ["step", "epoch", "attempt", "bytes"]
    seals = sorted((train / "checkpoints").glob("step-*.json"))
    return ["file", *columns], [
        [seal.stem, *(facts[name] for name in columns)]
        for seal in seals
        if (facts := rundir.read_json(seal))
    ]


def latency_table(run: Path) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the timed variants, from the metrics of the latency stage."""
    timed = finished(run).get("latency")
    columns = ["p50_ms", "p90_ms", "p95_ms", "p99_ms", "images_per_s"]
    found: dict[tuple[str, int], Row] = {}
    for key, value in (timed.metrics if timed else {}).items():
        variant, _, rest = key.partition("/b")
        batch, _, name = rest.partition("/")
        if batch.isdigit() and name in columns:
            found.setdefault((variant, int(batch)), {})[name] = value
    rows = [[*key, *(row.get(name) for name in columns)] for key, row in sorted(found.items())]
    return ["variant", "batch", *columns], rows


def results(run: Path) -> Row:
    """Return the metrics of all finished stages as `stage/metric`, and their durations."""
    found: Row = {}
    for stage, result in finished(run).items():
        found |= {f"{stage}/{name}": value for name, value in result.numbers().items()}
        found[f"{stage}/seconds"] = result.seconds
    if "train/seconds" in found:
        found["train/gpu_hours"] = spent.gpu_hours(store.rows(Event, run / "train"))
    return found


def finished(run: Path) -> dict[str, Result]:
    """Return the results of all finished stages."""
    there = [stage for stage in STAGE_NAMES if (run / stage / rundir.RESULT).exists()]
    return {stage: store.read(Result, run / stage) for stage in there}


def settings(run: Path) -> Row:
    """Return the configuration (nested, secrets masked), and the origin of the run."""
    facts = store.read(Run, run)
    events = store.events((run / "train").resolve())
    return {
        **masked(rundir.read_yaml(run / "config.yaml")),
        "source": facts.source,
        "versions": facts.versions,
        "command": mask(facts.command),
        "job_ids": sorted({str(job) for ids in facts.job_ids for job in ids.values()}),
        "attempts": max((event.attempt for event in events), default=0),
        "inputs": {
            stage: (run / stage).resolve().name for stage in STAGE_NAMES if (run / stage).exists()
        },
    }


def state(run: Path) -> str:
    """Return `finished`, `failed`, or `preempted` (unfinished, and may continue)."""
    wanted = [run / stage for stage in STAGE_NAMES if (run / stage).is_symlink()]
    if all((stage / rundir.RESULT).exists() for stage in wanted):
        return "finished"
    for stage in wanted:
        ends = [event.event for event in store.events(stage.resolve())]
        gave_up = any(row.event == "gave_up" for row in Supervision.read(stage))
        if gave_up or (ends and ends[-1] == "failed"):
            return "failed"
    return "preempted"
