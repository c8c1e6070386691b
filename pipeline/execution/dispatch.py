"""Carry out what was planned, here or as jobs of SLURM; what became of it is returned."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline import commands
from pipeline.config import WHERE, Config
from pipeline.display.masking import mask
from pipeline.errors import DONE, Interrupted, StageFailed, UserError
from pipeline.execution import local, slurm
from pipeline.execution.slurm import Launch
from pipeline.planning import again, compose, summary


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Args:
        code: the exit code.
        waiting: what is yet to be submitted; a sweep is as a whole.
        repeated: stage directories that were made anew; what runs share is repeated once.
    """

    code: int = DONE
    waiting: Launch | None = None
    repeated: frozenset[Path] = frozenset()


def run_here(this: Launch, overrides: list[str]) -> Outcome:
    """Run the stages on this machine and show what has come of it."""
    repeated = frozenset(again.set_aside(this.plan))
    code = commands.told(lambda: _run(this, overrides), this.config.root)
    return Outcome(code, repeated=repeated)


def _run(this: Launch, overrides: list[str]) -> int:
    try:
        local.run_local(this.plan, this.config)
    except Interrupted:
        how = _to_continue(this.config, overrides)
        raise Interrupted(f"stopped; to continue: {how}") from None
    except (UserError, StageFailed, OSError):
        with suppress(OSError):  # what ended a stage may keep its report from being written
            _close(this)
        raise
    _close(this)
    return DONE


def _close(this: Launch) -> None:
    """Bring the report and W&B up to date and show the results."""
    from pipeline.execution.after_stage import close

    if this.works or not this.report.exists():
        close(this.directory, this.config.tracking)
    summary.show_results(this.directory, this.report, this.config.stage.run)


def submit(waiting: list[Launch]) -> Outcome:
    """Hand the jobs of all runs to the cluster; wait for them if asked to."""
    root = waiting[0].config.root
    repeated = commands.told(lambda: frozenset(slurm.submit(waiting)), root)
    if isinstance(repeated, int):
        return Outcome(repeated)
    return Outcome(commands.told(lambda: _wait(waiting), root), repeated=repeated)


def _wait(waiting: list[Launch]) -> int:
    for this in waiting:
        if this.config.wait:
            slurm.wait(this)
            summary.show_results(this.directory, this.report, this.config.stage.run)
    return DONE


def _to_continue(config: Config, overrides: list[str]) -> str:
    """Return the command that continues a run: with the settings that belong to a launch only."""
    kept = [
        mask(override.input_line or "")
        for override in compose.parse(overrides)
        if (key := override.key_or_group.split(".")[0]) in WHERE
        and key not in ("name", "root", "again")
    ]
    return commands.relaunch(Path(config.root), config.name, *kept)
