"""Execute a plan on this machine or as SLURM jobs, and return the outcome."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import WHERE, Config
from pipeline.display import exits
from pipeline.display.errors import DONE, Interrupted, StageFailed, UserError
from pipeline.display.masking import mask
from pipeline.execution import local, slurm
from pipeline.execution.slurm import Launch
from pipeline.planning import again, compose, summary
from pipeline.records import named


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Args:
        code: the exit code.
        waiting: launches whose jobs are yet to be submitted; a sweep is submitted as a whole.
        repeated: stage directories that were repeated; stages shared by runs repeat once.
    """

    code: int = DONE
    waiting: Launch | None = None
    repeated: frozenset[Path] = frozenset()


def show(this: Launch) -> Outcome:
    """Print what a dry run leaves out: the batch scripts of jobs, and where stages would be."""
    if this.remote:
        slurm.show(this)
    summary.show_dry_run(Path(this.config.root))
    return Outcome()


def execute(this: Launch, overrides: list[str]) -> Outcome:
    """Record a run and run its stages here; leave jobs to be submitted with those of other runs."""
    if this.remote:
        return Outcome(waiting=this)
    this.record()
    return _run_here(this, overrides)


def _run_here(this: Launch, overrides: list[str]) -> Outcome:
    """Run the stages on this machine and show the results."""
    repeated = frozenset(again.set_aside(this.plan))
    code = exits.result_or_code(lambda: _run(this, overrides), this.config.root)
    return Outcome(code, repeated=repeated)


def _run(this: Launch, overrides: list[str]) -> int:
    try:
        local.run_local(this.plan, this.config)
    except Interrupted:
        how = _to_continue(this.config, overrides)
        raise Interrupted(f"stopped; to continue: {how}") from None
    except (UserError, StageFailed, OSError):
        with suppress(Exception):  # the cause, such as a full disk, can affect the report as well
            _close(this)
        raise
    _close(this)
    return DONE


def _close(this: Launch) -> None:
    """Refresh the report and the W&B run, and show the results."""
    from pipeline.execution.after_stage import close

    if this.works or not this.report.exists():
        close(this.directory, this.config.tracking)
    summary.show_results(this.directory, this.report, this.config.stage.run)


def submit(waiting: list[Launch]) -> Outcome:
    """Submit the jobs of all runs to SLURM; wait for them if `cluster.wait` is set."""
    root = waiting[0].config.root
    repeated = exits.result_or_code(lambda: frozenset(slurm.submit(waiting)), root)
    if isinstance(repeated, int):
        return Outcome(repeated)
    return Outcome(exits.result_or_code(lambda: _wait(waiting), root), repeated=repeated)


def _wait(waiting: list[Launch]) -> int:
    for this in waiting:
        if this.config.wait:
            slurm.wait(this)
            summary.show_results(this.directory, this.report, this.config.stage.run)
    return DONE


def _to_continue(config: Config, overrides: list[str]) -> str:
    """Return the command that continues a run, with the settings that are not frozen."""
    kept = [
        mask(override.input_line or "")
        for override in compose.parse(overrides)
        if (key := override.key_or_group.split(".")[0]) in WHERE
        and key not in ("name", "root", "again")
    ]
    return named.relaunch(Path(config.root), config.name, *kept)
