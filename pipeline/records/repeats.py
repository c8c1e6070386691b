"""Count and find the repeats of a stage: old results that were renamed to make room for a new one.

    <root>/stages/latency-<fingerprint>            the current result, to which the runs link
    <root>/stages/latency-<fingerprint>.again-1    the result before

The `stage.yaml` of a stage records how often its parents had been repeated when it began. If a
parent has been repeated since, the stage is out of date.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.records import store
from pipeline.records.schemas import Question

NOTE = "again"  # key of stage.yaml: how often the stage and its parents had been repeated


def count(directory: Path) -> int:
    """Return the number of repeats of a stage: the number of its old results."""
    number = 0
    while aside(directory, number + 1).exists():
        number += 1
    return number


def aside(directory: Path, number: int) -> Path:
    """Return the directory of an old result; the oldest has number 1."""
    return directory.with_name(f"{directory.name}.again-{number}")


def note(own: Path, parents: Iterable[Path]) -> dict[str, int]:
    """Return the repeats of a stage and its parents for `stage.yaml`; zeros are left out."""
    counts = {path.name.partition("-")[0]: count(path) for path in (own, *parents)}
    return {stage: number for stage, number in counts.items() if number}


def behind(directory: Path, parents: Iterable[Path]) -> str | None:
    """Return the parent that was repeated after the stage of `directory` began, if any."""
    now = note(directory, parents)
    now.pop(directory.name.partition("-")[0], None)
    if not now:
        return None
    try:
        then = store.read(Question, directory).again
    except OSError:
        return None
    return next((stage for stage, number in now.items() if number > then.get(stage, 0)), None)
