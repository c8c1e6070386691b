"""What follows a stage's result: the report and the W&B run of whoever asked for it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import tracking
from pipeline.config.base import STAGE_NAMES
from pipeline.errors import UserError
from pipeline.records import rundir, store
from pipeline.records.schemas import Submission
from pipeline.report import write_report

if TYPE_CHECKING:
    from pipeline.config import Disabled, Wandb


PATIENCE = 30.0  # seconds for the last curves of a training that has ended


def close(run: Path, tracked: Wandb | Disabled) -> None:
    """Bring the report and the W&B run of a run up to date."""
    write_report(run)
    tracking.mirror(run, tracked)


def askers(stage: Path) -> list[Path]:
    """Return the directories of the runs that asked for a stage."""
    asked = {
        name
        for row in store.rows(Submission, stage)
        for name in row.runs or ([row.run] if row.run else [])
    }
    runs = [rundir.run_dir(stage.parent.parent, name) for name in sorted(asked)]
    return [run for run in runs if run.exists()]


@contextmanager
def followed(stage: Path) -> Iterator[None]:
    """Show a training in W&B while it goes on, for the runs that are watched online."""
    from pipeline.planning.named_run import frozen

    followers = []
    for run in askers(stage):
        with suppress(OSError, UserError):  # it is sent at the end, which says what is amiss
            followers.append(tracking.follow(run, frozen(run).tracking))
    yield
    if (stage / rundir.RESULT).exists():  # whoever was interrupted has no time to wait
        for follower in filter(None, followers):
            with suppress(subprocess.TimeoutExpired):
                follower.wait(timeout=PATIENCE)


def close_complete(stage: Path) -> None:
    """Close the runs that asked for a stage and have now all they asked for.

    On a cluster nobody waits for the end of a run, so the job that brings its last result does it.
    """
    from pipeline.planning.named_run import frozen

    for run in askers(stage):
        links = [run / part for part in STAGE_NAMES if (run / part).is_symlink()]
        if all((link / rundir.RESULT).exists() for link in links):
            close(run, frozen(run).tracking)
