"""Stop a run and what waits for it, for good: `python -m pipeline.cancel RUN…`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from pipeline import attempt, commands, rundir
from pipeline.errors import DONE, FAILED
from pipeline.standing import look
from slurm import scheduler
from slurm.job import CANCELLED, rows
from slurm.queue import alone, queued, submitted


def main(arguments: list[str] | None = None) -> int:
    """Cancel runs."""
    parser = commands.parser(
        "cancel",
        "Stop runs. What was running saves and leaves; nothing comes back until it is launched.",
        "A stage that another run needs, too, goes on.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names of runs")
    options = parser.parse_args(arguments)
    return commands.ending(lambda: _cancel(options.root, options.runs))


def _cancel(root: Path, names: list[str]) -> int:
    folder = rundir.job_dir(root)
    runs = commands.find(root, names)
    # not while another launch submits what is to be cancelled
    with alone(folder) if folder.exists() else nullcontext():
        stopped, trouble = _stop(root, runs)
    if trouble:
        print(f"error: {trouble}; nothing will be requeued, but cancel again", file=sys.stderr)
        return FAILED
    if stopped:
        print(f"cancelled; to go on later: python -m pipeline.launch name={names[0]}")
    else:
        print("nothing was stopped")
    return DONE


def _stop(root: Path, runs: list[Path]) -> tuple[int, str]:
    """Stop the stages that nobody else needs; return how many, and what kept SLURM from it."""
    try:
        queue, trouble = scheduler.mine(), ""
    except (scheduler.Refused, scheduler.Unreachable) as error:
        queue, trouble = None, str(error)
    for run in runs:
        rundir.write_text(run / CANCELLED, f"{time.strftime('%FT%T%z')}\n")
    ids: list[str] = []
    stopped, concerned = 0, False
    for run in runs:
        for stage, directory in commands.stages(run).items():
            state = look(stage, directory, queue, {}).state
            if state == "done":
                continue
            if others := _others(root, directory):
                print(f"{stage} of {run.name} goes on: {', '.join(others)} needs it, too")
                continue
            # first the mark, so that nobody requeues what is about to be cancelled
            rundir.write_text(directory / CANCELLED, f"{time.strftime('%FT%T%z')}\n")
            jobs = queued(directory, queue or {})
            ids += [entry.id for entry, _ in jobs]
            if not jobs and state in ("running", "stalled?"):
                _ask(directory)
            stopped += 1
            concerned |= bool(submitted(directory))
            print(f"{stage} of {run.name}: {state} → cancelled")
    if queue is None:
        return stopped, trouble if concerned else ""
    try:
        scheduler.cancel(reversed(ids))  # the last first: nothing starts in between
    except (scheduler.Refused, scheduler.Unreachable) as error:
        trouble = str(error)
    return stopped, trouble


def _others(root: Path, directory: Path) -> list[str]:
    """Return the runs that asked for a stage and are neither removed nor cancelled."""
    asked = {run for row in rows(directory / rundir.JOBS) for run in row.get("runs", [])}
    there = {name for name in asked if (rundir.run_dir(root, name) / "run.json").exists()}
    return sorted(n for n in there if not (rundir.run_dir(root, n) / CANCELLED).exists())


def _ask(directory: Path) -> None:
    """Ask a stage that runs on this machine to save and leave."""
    owner = attempt.last(directory)
    if owner.get("host") == socket.gethostname():
        os.kill(owner["pid"], signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
