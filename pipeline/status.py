"""Show what each stage of a run is doing: `python -m pipeline.status [RUN …]`."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import suppress
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pipeline.config.base import STAGE_NAMES
from pipeline.contract.table import STAGES
from pipeline.display import exits
from pipeline.display.errors import DONE, UserError
from pipeline.display.terminal import Terminal, bold
from pipeline.planning.summary import outcome
from pipeline.records import named, repeats, rundir, stage_status, store
from pipeline.records.schemas import Run
from pipeline.records.stage_status import Standing
from slurm.records import Submission

SINGLY = 3  # up to this many runs are shown stage by stage, more runs in one line each
PARTLY = ("running", "stalled?", "suspended", "requeued", "held", "stopped")
COLOURS = {
    "done": "green", "partly done": "green", "running": "cyan", "stalled?": "yellow",
    "suspended": "yellow", "held": "yellow",
    "unknown": "yellow", "stopped": "yellow", "failed": "red", "cancelled": "red", "damaged": "red",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Show the status of runs."""
    parser = named.parser(
        "status",
        "Show what each stage is doing: attempt, progress, time to go, why it waits, what it cost.",
        "Exit codes: 0, whatever the runs are doing; 2 bad input, e.g. a run that does not exist.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of runs (default: all)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = parser.parse_args(arguments)
    return exits.ending(lambda: _show(options.root, options.runs, options.json))


def _show(root: Path, names: list[str], as_json: bool) -> int:
    found_runs = named.find(root, names)
    runs = {run.name: named.stages(run) for run in found_runs}
    paths = [path for stages in runs.values() for path in stages.values()]
    queue, note = stage_status.queued(paths)
    if note and not any(map(_by_slurm, paths)):
        note = ""
    waits = stage_status.names_of(runs.items(), queue or {})
    found = {
        name: [
            _in_its_run(stage_status.of(stage, path, queue, waits), stages)
            for stage, path in stages.items()
        ]
        for name, stages in runs.items()
    }
    for run in found_runs:
        found[run.name] += _record(run)
    if as_json:
        rows = [_row(*item) for item in found.items()]
        print(json.dumps({"note": note, "runs": rows}, indent=2, allow_nan=False))
        return DONE
    console = Terminal(width=160)
    if len(found) <= SINGLY:
        for name, stages in found.items():
            _one(console, name, stages)
    else:
        _many(console, found)
    for text in filter(None, (note, *_damages(found))):
        console.print(f"note: {text}", style="yellow", soft_wrap=True)
    console.print(_last_line(found, root), soft_wrap=True)
    return DONE


def _in_its_run(standing: Standing, stages: dict[str, Path]) -> Standing:
    """Return the status of a stage; a finished one says if it is out of date."""
    directories = {name: path.resolve() for name, path in stages.items()}
    parents = [directories[p] for p in STAGES[standing.stage].parents if p in directories]
    with suppress(UserError, OSError):  # damaged records are reported elsewhere
        older = repeats.behind(directories[standing.stage], parents)
        if standing.state == "done" and older:
            why = f"older than {older}, which was repeated since; launch again to repeat it"
            return dataclasses.replace(standing, why=why)
    return standing


def _by_slurm(directory: Path) -> bool:
    """Whether a stage was ever submitted to SLURM."""
    with suppress(OSError):  # such a stage is shown as damaged
        return bool(Submission.read(directory))
    return False


def _damages(found: dict[str, list[Standing]]) -> list[str]:
    """Return lines on damaged records and their cure; a shared stage is named once."""
    stages = [stage for stages in found.values() for stage in stages if stage.state == "damaged"]
    return list(dict.fromkeys(stage.why for stage in stages))


def _record(run: Path) -> list[Standing]:
    """Return a status for the records of a run if they are damaged; else nothing."""
    try:
        store.read(Run, run)
    except (UserError, OSError) as error:
        return [Standing(stage="record", state="damaged", why=str(error))]
    return []


def _row(name: str, stages: list[Standing]) -> dict[str, object]:
    return {
        "name": name,
        "state": stage_status.overall(stages),
        "lost_seconds": round(sum(stage.lost for stage in stages), 1),
        "gpu_hours": round(sum(stage.gpu_hours for stage in stages), 3),
        "stages": [dataclasses.asdict(stage) for stage in stages],
    }


def _one(console: Terminal, name: str, stages: list[Standing]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title=bold(name), title_justify="left")
    for column in ("stage", "state", "job", "attempt", "progress", "eta", ""):
        table.add_column(column, overflow="fold")
    for stage in stages:
        progress = f"{100 * stage.done / stage.total:.0f} %" if stage.total else ""
        table.add_row(
            stage.stage,
            _mark(stage.state),
            stage.job or "",
            str(stage.attempt or ""),
            "" if stage.state == "done" else progress,
            duration(stage.eta) if stage.eta is not None else "",
            _words(stage),
        )
    console.print(table)
    lost, hours = sum(s.lost for s in stages), sum(s.gpu_hours for s in stages)
    parts = [f"lost to interruptions: {duration(lost)}"] if lost else []
    parts += [f"GPU-hours: {hours:.2f}"] if hours else []
    if parts:
        console.print("; ".join(parts))


def _words(stage: Standing) -> str:
    if stage.state == "done":
        result = outcome(stage.stage, Path(stage.directory))
        return result + (f" ({stage.why})" if stage.why else "")
    if stage.state == "damaged":
        return "see the note"
    if stage.state in ("running", "stalled?", "suspended"):
        return ", ".join(filter(None, (stage.text, stage.why)))
    return stage.why


def _many(console: Terminal, found: dict[str, list[Standing]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "state", *STAGE_NAMES, "lost"):
        table.add_column(column)
    for name, stages in found.items():
        cells = {stage.stage: _cell(stage) for stage in stages}
        state = stage_status.overall(stages)
        lost = sum(stage.lost for stage in stages)
        table.add_row(
            name,
            _mark(state),
            *(cells.get(stage, "") for stage in STAGE_NAMES),
            duration(lost) if lost else "",
        )
    console.print(table)


def _cell(stage: Standing) -> str | Text:
    if stage.state in PARTLY and stage.total:
        return f"{stage.state} {100 * stage.done / stage.total:.0f} %"
    return _mark(stage.state)


def _mark(state: str) -> Text:
    return Text(state, COLOURS.get(state, ""))


def _last_line(found: dict[str, list[Standing]], root: Path) -> str:
    counts: dict[str, int] = {}
    for stages in found.values():
        state = stage_status.overall(stages)
        counts[state] = counts.get(state, 0) + 1
    text = ", ".join(f"{count} {state}" for state, count in counts.items())
    where = named.elsewhere(root)
    if len(found) > 1:
        return f"{len(found)} runs: {text}"
    ((name, stages),) = found.items()
    bad = next((s for s in stages if s.state in ("failed", "stalled?")), None)
    if bad:
        return f"its log: python -m pipeline.logs {name} {bad.stage}{where}"
    if counts.keys() == {"damaged"}:
        return f"fix that, then: {named.go_on(rundir.run_dir(root, name))}"
    if counts.keys() & {"cancelled", "stopped", "not started"}:
        return f"to go on: {named.go_on(rundir.run_dir(root, name))}"
    if counts.keys() == {"partly done"}:
        return f"for the stages that were not requested yet: {named.relaunch(root, name)}"
    if counts.keys() == {"done"}:
        return f"report: {rundir.shown(rundir.run_dir(root, name) / 'report.html')}"
    return f"follow it: python -m pipeline.logs {name} -f{where}"


def duration(seconds: float) -> str:
    """Return a duration in words: `42 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes, hours = round(seconds / 60), seconds / 3600
    if seconds < 120:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(hours) // 24} d {round(hours) % 24} h"


if __name__ == "__main__":
    sys.exit(main())
