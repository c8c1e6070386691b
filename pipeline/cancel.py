"""Stop runs and their dependent jobs for good: `python -m pipeline.cancel RUN…`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

from pipeline.display import exits
from pipeline.display.errors import DONE, FAILED, UserError
from pipeline.display.outside import say
from pipeline.records import attempt, named, rundir, stage_status, store
from pipeline.records.schemas import Submission
from pipeline.records.stage_status import AT_WORK
from slurm import private, scheduler
from slurm.entry import Entry
from slurm.queue import active, alone, of_others, queued, submitted
from slurm.records import CANCELLED

PATIENCE = 60.0  # seconds that a stage has to save and stop


def main(arguments: list[str] | None = None) -> int:
    """Cancel runs."""
    parser = named.parser(
        "cancel",
        "Stop runs. A running stage saves and stops; nothing starts again before you launch it.",
        "A stage that another run needs, too, goes on.\n"
        "Exit codes: 0 stopped, or nothing to stop; 1 something may go on, named; 2 bad input.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names of runs")
    options = parser.parse_args(arguments)
    return exits.ending(lambda: _cancel(options.root, options.runs))


def _cancel(root: Path, names: list[str]) -> int:
    folder = rundir.job_dir(root)
    runs = named.find(root, names)
    for run in runs:
        _refuse_foreign(run)
    # under the lock, because a concurrent launch could submit the jobs that are being cancelled
    with alone(folder) if folder.exists() else nullcontext():
        stopped, trouble = _stop(root, runs)
    if trouble:
        say(f"error: {trouble}", file=sys.stderr)
        return FAILED
    if damaged := _damaged(runs):
        raise UserError(damaged)
    if not stopped:
        print("nothing was stopped")
    for run in runs if stopped else []:
        say(f"cancelled; to go on later: {named.go_on(run)}")
    return DONE


def _stop(root: Path, runs: list[Path]) -> tuple[int, str]:
    """Stop the stages that no other run needs; return their number, and a text on the rest."""
    try:
        paths = [path for run in runs for path in named.stages(run).values()]
        queue, trouble = scheduler.user_jobs() | of_others(paths), ""
    except (scheduler.Refused, scheduler.Unreachable) as error:
        queue, trouble = None, str(error)
    for run in (run for run in runs if not _finished(run)):
        rundir.write_text(run / CANCELLED, f"{time.strftime('%FT%T%z')}\n")
    ids: list[str] = []
    here: dict[str, Path] = {}  # stages that run without a job, by title
    stopped, concerned = 0, False
    for run in runs:
        for stage, directory in named.stages(run).items():
            state = stage_status.of(stage, directory, queue, {}).state
            if state == "done":
                continue
            others = _others(root, directory, state in AT_WORK) if state != "damaged" else []
            if others:
                say(f"{stage} of {run.name} goes on: {', '.join(others)} needs it, too")
                continue
            if (owner := _owner(directory, queue or {})) is not None:
                say(f"{stage} of {run.name} goes on: its job is of {private.owner(owner)}")
                continue
            # the mark is written first, so that the job is neither requeued nor started
            directory.mkdir(parents=True, exist_ok=True)
            rundir.write_text(directory / CANCELLED, f"{time.strftime('%FT%T%z')}\n")
            jobs = _queued(directory, queue or {})
            ids += jobs
            stopped += state != "cancelled" or bool(jobs)
            concerned |= state != "damaged" and bool(submitted(directory))
            if not jobs and (state in AT_WORK or _lives(directory)):
                here[f"{stage} of {run.name}"] = directory
            elif state == "cancelled":
                say(f"{stage} of {run.name} was cancelled before")
            elif state != "damaged":
                say(f"{stage} of {run.name}: {state} → cancelled")
    for directory in here.values():
        _request_stop(directory)
    if queue is not None:
        try:
            scheduler.cancel(reversed(ids))  # last stage first, so that none starts in between
        except (scheduler.Refused, scheduler.Unreachable) as error:
            trouble, concerned = str(error), True
    doubt = [f"{trouble}; nothing will be requeued, but cancel again"] if trouble else []
    return stopped, "; ".join([*(doubt if concerned else []), *_await(here)])


def _refuse_foreign(run: Path) -> None:
    """Refuse a run of another user, whose processes and files are out of reach."""
    owner = run.stat().st_uid
    if owner != os.geteuid() and not os.access(run, os.W_OK) and not _finished(run):
        raise UserError(f"{run.name} is of {private.owner(owner)}, who alone can cancel it")


def _finished(run: Path) -> bool:
    """Whether all stages that a run was launched with are done, so nothing is left to stop."""
    states = [
        stage_status.of(name, path, None, {}).state for name, path in named.stages(run).items()
    ]
    return bool(states) and all(state == "done" for state in states)


def _owner(directory: Path, queue: dict[str, Entry]) -> int | None:
    """Return the other user whose queued job works on a stage."""
    with suppress(OSError):
        entry = active(directory, queue)
        rows = [row for row in submitted(directory) if entry and row.id == entry.id]
        return rows[-1].user if rows and not rows[-1].ours else None
    return None


def _queued(directory: Path, queue: dict[str, Entry]) -> list[str]:
    """Return the ids of a stage's jobs, as far as they can be read."""
    with suppress(OSError):
        return [entry.id for entry, _ in queued(directory, queue)]
    return []


def _damaged(runs: list[Path]) -> str:
    """Return a text on the damaged records of the stages to stop, and how to fix them."""
    states = [
        stage_status.of(name, path, None, {})
        for run in runs
        for name, path in named.stages(run).items()
    ]
    return "; ".join(dict.fromkeys(found.why for found in states if found.state == "damaged"))


def _goes_on(directory: Path) -> bool:
    return stage_status.of("", directory, None, {}).state in AT_WORK or _lives(directory)


def _lives(directory: Path) -> bool:
    """Whether a stage runs on this machine, as far as its records can be read."""
    with suppress(UserError):
        return attempt.alive(directory)
    return False


def _others(root: Path, directory: Path, works: bool) -> list[str]:
    """Return the runs that use a stage and are neither removed nor cancelled.

    For a local stage that is running, this is the run whose launcher executes it.
    """
    rows = list(store.rows(Submission, directory))
    names = {run for row in rows for run in row.runs} | {row.run for row in rows[-1:] if works}
    there = {name for name in names - {""} if (rundir.run_dir(root, name) / "run.json").exists()}
    return sorted(n for n in there if not (rundir.run_dir(root, n) / CANCELLED).exists())


def _request_stop(directory: Path) -> None:
    """Signal a stage on this machine to stop; a stage on another one is stopped by its launcher."""
    with suppress(ProcessLookupError, PermissionError):
        if _lives(directory):
            os.kill(attempt.last(directory).pid, signal.SIGTERM)


def _await(stages: dict[str, Path]) -> Iterator[str]:
    """Wait for stages that were asked to stop; yield those that still run, and how to end them."""
    until = time.monotonic() + PATIENCE
    for title, directory in stages.items():
        while _goes_on(directory) and time.monotonic() < until:
            time.sleep(0.1)
        if not _goes_on(directory):
            done = (directory / rundir.RESULT).exists()
            say(f"{title}: running → {'done' if done else 'cancelled'}")
            continue
        owner = attempt.last(directory)
        yield (
            f"{title} was asked to save and stop, but still runs (process {owner.pid} on "
            f"{owner.host}); wait for it, or end it there: kill -9 {owner.pid}"
        )


if __name__ == "__main__":
    sys.exit(main())
