"""Repeating a stage: the old answer is kept aside, and a new one is made under the same name.

    <root>/stages/latency-<fingerprint>            the present answer, to which the runs link
    <root>/stages/latency-<fingerprint>.again-1    the one before

An answer that follows from another notes in its `stage.yaml` how often that one had been repeated
by then, so that it is known to be out of date when its parent is repeated without it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pipeline.display.outside import say
from pipeline.errors import UserError
from pipeline.planning.step import Step
from pipeline.records import disk, rundir, stage_status, store
from pipeline.records.schemas import Question
from slurm.queue import submitted

NOTE = "again"  # key of stage.yaml: how often the stage and its parents had been repeated


def count(directory: Path) -> int:
    """Return how often a stage was repeated: how many of its old answers are kept aside."""
    number = 0
    while _aside(directory, number + 1).exists():
        number += 1
    return number


def _aside(directory: Path, number: int) -> Path:
    return directory.with_name(f"{directory.name}.again-{number}")


def note(own: Path, parents: Iterable[Path]) -> dict[str, int]:
    """Return what `stage.yaml` is to keep: counts by stage, none of those never repeated."""
    counts = {path.name.partition("-")[0]: count(path) for path in (own, *parents)}
    return {stage: number for stage, number in counts.items() if number}


def behind(directory: Path, parents: Iterable[Path]) -> str | None:
    """Return the parent that was repeated since the stage of `directory` was begun, if any."""
    now = note(directory, parents)
    now.pop(directory.name.partition("-")[0], None)
    if not now:
        return None
    try:
        then = store.read(Question, directory).again
    except OSError:
        return None
    return next((stage for stage, number in now.items() if number > then.get(stage, 0)), None)


def check(steps: list[Step]) -> None:
    """Make sure that nothing works on what is to be kept aside, or from it.

    Raises:
        UserError: a job or a process does; names it.
    """
    repeated = [step for step in steps if step.repeats]
    if not repeated:
        return
    stages = repeated[0].dir.parent
    prints = {step.fingerprint for step in repeated}
    concerned = [step.dir for step in repeated]
    concerned += [path for path in _unfinished(stages) if prints & _parents(path)]
    asks = any(submitted(path) for path in concerned)
    queue = stage_status.queued()[0] if asks else None
    for path in dict.fromkeys(concerned):
        found = stage_status.look(path.name.partition("-")[0], path, queue, {})
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


def set_aside(steps: Iterable[Step]) -> list[Path]:
    """Rename the directories of what is repeated; return them.

    What follows from others goes first: killed in between, nothing is left that follows from an
    answer which is not there any more.

    Raises:
        UserError: a process has begun to work on one of them; nothing was renamed.
    """
    moved: dict[Path, None] = {}
    with ExitStack() as locks:
        for step in steps:
            if step.repeats and step.dir not in moved and step.dir.exists():
                _lock(step.dir, locks)
                moved[step.dir] = None
        for directory in reversed(moved):
            aside = _aside(directory, count(directory) + 1)
            directory.rename(aside)
            disk.sync(directory.parent)
            say(f"{directory.name}: the old answer is kept as {aside}")
    return list(moved)


def _lock(directory: Path, locks: ExitStack) -> None:
    handle = os.open(directory / rundir.LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    locks.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _refuse(directory, "is running")
