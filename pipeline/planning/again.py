"""Repeat stages: set their old results aside if nothing uses them; see `records.repeats`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pipeline.display.errors import UserError
from pipeline.display.outside import say
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import disk, repeats, rundir, stage_status, store
from pipeline.records.schemas import Question
from slurm.queue import submitted


def refuse_in_use(plan: list[PlannedStage]) -> None:
    """Check that no job or process uses the directories that are to be repeated.

    Raises:
        UserError: one of them does; the message names it.
    """
    repeated = [planned for planned in plan if planned.repeats]
    if not repeated:
        return
    stages = repeated[0].dir.parent
    prints = {planned.fingerprint for planned in repeated}
    concerned = [planned.dir for planned in repeated]
    concerned += [path for path in _unfinished(stages) if prints & _parents(path)]
    asks = any(submitted(path) for path in concerned)
    queue = stage_status.queued()[0] if asks else None
    for path in dict.fromkeys(concerned):
        found = stage_status.of(path.name.partition("-")[0], path, queue, {})
        if found.job or found.state in stage_status.UNDER_WAY:
            _refuse(path, f"is {found.state}" + (f" (job {found.job})" if found.job else ""))


def _unfinished(stages: Path) -> list[Path]:
    if not stages.exists():
        return []
    begun = [path for path in stages.iterdir() if (path / rundir.STAGE).exists()]
    return [p for p in begun if ".again-" not in p.name and not (p / rundir.RESULT).exists()]


def _parents(directory: Path) -> set[str]:
    return set(store.read(Question, directory).parents.values())


def _refuse(directory: Path, why: str) -> None:
    raise UserError(
        f"again=: {directory.name} {why}; wait for its end, or stop it first "
        "(python -m pipeline.status names its run, python -m pipeline.cancel RUN stops it)"
    )


def set_aside(plan: Iterable[PlannedStage]) -> list[Path]:
    """Rename the directories of the stages to repeat; return them.

    Dependent stages are renamed first, so that a kill in between leaves no result whose parent
    is gone.

    Raises:
        UserError: a process has started to use one of them; nothing was renamed.
    """
    moved: dict[Path, None] = {}
    with ExitStack() as locks:
        for planned in plan:
            if planned.repeats and planned.dir not in moved and planned.dir.exists():
                _lock(planned.dir, locks)
                moved[planned.dir] = None
        for directory in reversed(moved):
            aside = repeats.aside(directory, repeats.count(directory) + 1)
            directory.rename(aside)
            disk.sync(directory.parent)
            say(f"{directory.name}: the old result is kept as {aside}")
    return list(moved)


def _lock(directory: Path, locks: ExitStack) -> None:
    handle = os.open(directory / rundir.LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    locks.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _refuse(directory, "is running")
