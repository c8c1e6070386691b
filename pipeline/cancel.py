"""Stop a run and what waits for it, for good: `python -m pipeline.cancel RUN…`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from pipeline import attempt, commands, rundir
from pipeline.errors import DONE, FAILED
from pipeline.standing import look
from slurm import scheduler
from slurm.job import CANCELLED, rows
from slurm.submit import active


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
    ids: list[str] = []
    trouble = ""
    try:
        queue = scheduler.mine()
    except scheduler.Refused:  # no SLURM here: only what runs on this machine
        queue = {}
    except scheduler.Unreachable as error:
        queue, trouble = {}, f"SLURM does not answer ({error})"
    for run in commands.find(root, names):
        for stage, directory in commands.stages(run).items():
            state = look(stage, directory, queue, {}).state
            others = _others(root, directory, names)
            if state == "done":
                continue
            if others:
                print(f"{stage} of {run.name} goes on: {', '.join(others)} needs it, too")
                continue
            # first the mark, so that nobody requeues what is about to be cancelled
            rundir.write_text(directory / CANCELLED, f"{time.strftime('%FT%T%z')}\n")
            entry = active(directory, queue)
            if entry:
                ids.append(entry.id)
            elif state in ("running", "stalled?"):
                _ask(directory)
            print(f"{stage} of {run.name}: {state} → cancelled")
    if ids:
        try:
            scheduler.cancel(reversed(ids))  # the last first: nothing starts in between
        except scheduler.Unreachable as error:
            trouble = f"SLURM does not answer ({error})"
    if trouble:
        print(f"error: {trouble}; nothing will be requeued, but cancel again", file=sys.stderr)
        return FAILED
    print(f"cancelled; to go on later: python -m pipeline.launch name={names[0]}")
    return DONE


def _others(root: Path, directory: Path, names: list[str]) -> list[str]:
    """Return the other runs that asked for a stage and are not cancelled themselves."""
    asked = {run for row in rows(directory / rundir.JOBS) for run in row.get("runs", [])}
    return [
        name
        for name in sorted(asked - set(names))
        if not any(
            (path / CANCELLED).exists()
            for path in commands.stages(rundir.run_dir(root, name)).values()
        )
    ]


def _ask(directory: Path) -> None:
    """Ask a stage that runs on this machine to save and leave."""
    owner = attempt.last(directory)
    if owner.get("host") == socket.gethostname():
        os.kill(owner["pid"], signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
