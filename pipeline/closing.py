"""What follows a stage's result: the report and the W&B run of whoever asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import rundir, tracking
from pipeline.config.base import STAGE_NAMES
from pipeline.report import write_report
from slurm.job import rows

if TYPE_CHECKING:
    from pipeline.config import Disabled, Wandb


def close(run: Path, tracked: Wandb | Disabled) -> None:
    """Bring the report and the W&B run of a run up to date."""
    write_report(run)
    tracking.mirror(run, tracked)


def close_complete(stage: Path) -> None:
    """Close the runs that asked for a stage and have now all they asked for.

    On a cluster nobody waits for the end of a run, so the job that brings its last result does it.
    """
    from pipeline.runs import frozen

    asked = {run for row in rows(stage / rundir.JOBS) for run in row.get("runs", [])}
    for name in sorted(asked):
        run = rundir.run_dir(stage.parent.parent, name)
        links = [run / part for part in STAGE_NAMES if (run / part).is_symlink()]
        if all((link / rundir.RESULT).exists() for link in links):
            close(run, frozen(run).tracking)
