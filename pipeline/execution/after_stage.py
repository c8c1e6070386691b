"""After a stage finishes, refresh the report and W&B run of every run that uses it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import tracking
from pipeline.config.base import STAGE_NAMES
from pipeline.display.errors import UserError
from pipeline.records import rundir, store
from pipeline.records.schemas import Submission
from pipeline.report import write_report

if TYPE_CHECKING:
    from pipeline.config import Disabled, Wandb


PATIENCE = 30.0  # seconds to send the last curves of a finished training


def close(run: Path, tracked: Wandb | Disabled) -> None:
    """Refresh the report and the W&B run of a run."""
    write_report(run)
    tracking.mirror(run, tracked)


def runs_using(stage: Path) -> list[Path]:
    """Return the directories of the runs that use a stage."""
    names = {
        name
        for row in store.rows(Submission, stage)
        for name in row.runs or ([row.run] if row.run else [])
    }
    runs = [rundir.run_dir(stage.parent.parent, name) for name in sorted(names)]
    return [run for run in runs if run.exists()]


@contextmanager
def followed(stage: Path) -> Iterator[None]:
    """Mirror a training while it runs to W&B, TensorBoard or CSV, as its runs have requested."""
    from pipeline.planning.named_run import frozen

    followers: list[subprocess.Popen[bytes]] = []
    for run in runs_using(stage):
        with suppress(OSError, UserError):  # the mirror at the end reports the error
            followers += tracking.follow(run, frozen(run).tracking)
    yield
    if (stage / rundir.RESULT).exists():  # an interrupted job must exit before SLURM kills it
        for follower in followers:
            with suppress(subprocess.TimeoutExpired):
                follower.wait(timeout=PATIENCE)


def close_complete(stage: Path) -> None:
    """Finish the W&B runs whose last stage has just finished.

    On a cluster no launcher waits for the end of a run, so the job with its last result does it.
    """
    from pipeline.planning.named_run import frozen

    for run in runs_using(stage):
        links = [run / name for name in STAGE_NAMES if (run / name).is_symlink()]
        if all((link / rundir.RESULT).exists() for link in links):
            close(run, frozen(run).tracking)
