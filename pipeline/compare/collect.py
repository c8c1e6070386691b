"""Read the runs of a comparison from their directories: settings, results, cost.

Only small files are read, so that a thousand runs take seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import WHERE, completed, flatten
from pipeline.display.errors import UserError, from_os_error, nearest
from pipeline.display.masking import mask, masked
from pipeline.planning.named_run import settled
from pipeline.records import named, repeats, rundir, schemas, spent, stage_status, store
from pipeline.records.schemas import Change, Event, Result

ACCURACY = "eval/fused/top1"


@dataclass(kw_only=True)
class Run:
    """One run, read from its directory or from W&B.

    Args:
        state: `done` if its numbers count; otherwise the reason they do not, detailed in `why`.
        settings: the settings that decide its result, except the seed, by dotted key.
        metrics: the finite results of finished stages as `stage/metric`.
        wall_hours, gpu_hours: of training, over all attempts; None if they were not measured.
        layers: the layers that grew branches.
        device: the device that each finished stage ran on.
        time_again: the command that repeats its latency.
    """

    name: str
    state: str = "done"
    why: str = ""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    wall_hours: float | None = None
    gpu_hours: float | None = None
    layers: list[str] = field(default_factory=list)
    device: dict[str, str] = field(default_factory=dict)
    source: str = ""
    command: str = ""
    history: Path | None = None
    time_again: str = ""


def select(root: Path, names: list[str], group: str | None, damaged: bool = False) -> list[Path]:
    """Return the directories of named runs, or of all runs of a group.

    Args:
        root: the directory that holds `runs/`.
        names: names of runs.
        group: the name of a group of runs.
        damaged: also include runs whose group cannot be read.

    Raises:
        UserError: there is no such run or group.
    """
    if group is None:
        return named.find(root, list(dict.fromkeys(names)))
    groups, untold = named.groups(root)
    found = [run for run, its in groups.items() if its == group]
    if not found:
        known = sorted({its for its in groups.values() if its})
        cure = nearest(group, known) if known else "no run there has one"
        raise UserError(f"no run in {root} has group '{group}'; {cure}")
    return found + (untold if damaged else [])


def read(directories: list[Path]) -> list[Run]:
    """Read runs; query SLURM only if one of them is not finished."""
    runs = [_read(directory) for directory in directories]
    pending = [pair for pair in zip(runs, directories, strict=True) if pair[0].state == ""]
    if pending:
        queue, _ = stage_status.queued()
        for run, directory in pending:
            stages = named.stages(directory).items()
            looks = [stage_status.of(name, path, queue, {}) for name, path in stages]
            run.state = stage_status.overall(looks) if looks else "not started"
            late = [look for look in looks if look.state != "done"]
            run.why = "; ".join(f"{look.stage} {look.state}" for look in late[:1])
            run.why += f": {late[0].why}" if late and late[0].why else ""
    return runs


def _read(directory: Path) -> Run:
    """Read one run; leave its state empty if it is unfinished."""
    run = Run(name=directory.name, time_again=named.time_again(directory))
    try:
        _fill(run, directory)
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        run.state = "damaged"
        run.why = _why(error, directory)
    return run


def _why(error: Exception, directory: Path) -> str:
    """Return a message that says why the files of a run could not be read."""
    if not isinstance(error, OSError):
        return str(error) if isinstance(error, UserError) else f"lacks {error}"
    if error.filename is None:  # the error of a failing disk names no file
        return str(from_os_error(error, directory))
    return str(rundir.damaged(Path(error.filename), ValueError(error.strerror)))


def _fill(run: Run, directory: Path) -> None:
    config = masked(settled(flatten(completed(rundir.read_yaml(directory / "config.yaml")))))
    run.seed = config.pop("seed")
    run.settings = {k: v for k, v in config.items() if k.split(".")[0] not in WHERE}
    facts = store.read(schemas.Run, directory)
    run.command = mask(facts.command)
    run.source = facts.source["revision"] or facts.source.get("version", "")
    stages = named.stages(directory)
    results = {name: store.read(Result, path) for name, path in _finished(stages)}
    for name, result in results.items():
        run.metrics |= {f"{name}/{k}": v for k, v in finite(result.numbers())}
        run.device[name] = str(result.environment.get("device", ""))
    if "train" in results:
        run.history = stages["train"] / rundir.HISTORY
        run.wall_hours = results["train"].seconds / 3600
        hours = spent.gpu_hours(store.rows(Event, stages["train"]))
        run.gpu_hours = hours or None
        if run.metrics.get("train/grown"):
            rows = store.rows(Change, stages["train"])
            run.layers = sorted({row.layer for row in rows if row.action == "grow"})
    run.state, run.why = _judged(stages, results, run.metrics)


def finite(metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Yield the metrics that can be averaged: finite numbers."""
    for name, value in metrics.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, value


def _finished(stages: dict[str, Path]) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in stages.items() if rundir.there(path / rundir.RESULT)]


def _judged(
    stages: dict[str, Path], results: dict[str, Result], metrics: dict[str, float]
) -> tuple[str, str]:
    if not stages or results.keys() != stages.keys():
        return "", ""
    if "eval" not in results:
        return "not evaluated", "it was launched without the stage eval"
    if ACCURACY not in metrics:
        return "damaged", f"the result of eval holds no {ACCURACY.removeprefix('eval/')}"
    for name, result in results.items():
        for parent, directory in result.parents.items():
            if parent in stages and stages[parent].name != directory:
                return "mismatched", f"{name} answers for {directory}, not for the run's {parent}"
        known = [stages[parent] for parent in result.parents if parent in stages]
        if older := repeats.behind(stages[name], known):
            return "mismatched", f"{name} is older than the run's {older}, which was repeated since"
    return "done", ""
