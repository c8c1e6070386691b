"""Compose, plan and execute runs: `python -m pipeline.launch [KEY=VALUE …]`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from pipeline.display import exits
from pipeline.execution import dispatch, resources, sequence
from pipeline.execution.dispatch import Outcome
from pipeline.execution.slurm import Launch
from pipeline.planning import (
    arguments,
    compose,
    explain,
    named_run,
    overview,
    preflight,
    safety,
    sweep,
)
from pipeline.planning.compose import Composed
from pipeline.planning.named_run import Settled
from pipeline.planning.outline import catalogue
from pipeline.planning.plan import make_plan
from pipeline.records import rundir
from slurm import output, private


def main() -> int:
    """Run the command; print a last line that says how it ended; return its exit code."""
    output.make_safe()
    private.keep_out()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of exiting with 1
    words = sys.argv[1:]
    if words[:1] == ["--models"]:
        return exits.ending(lambda: catalogue.show(*words[1:]))
    return exits.ending(lambda: _command(words), at_interrupt="interrupted")


@explain.explained()
def _command(words: list[str]) -> int:
    """Launch the runs of a command line; return the worst exit code."""
    rundir.here()  # fails with one line; Hydra would fail with a traceback
    command = arguments.read(words)
    sys.argv[1:] = command.words  # where Hydra reads them
    sweep.check(command)
    if command.shows:
        return compose.show()
    if command.searches:
        return sequence.search(command, launch)
    runs = sweep.settled(command)
    sequence.check(runs)
    return sequence.each(runs, launch).code


def launch(composed: Composed, run: Settled, repeated: frozenset[Path]) -> Outcome:
    """Plan, check, show and execute one run.

    Args:
        composed: what the user asked for.
        run: the configuration, choices and overrides that follow.
        repeated: stage directories that this command has already repeated, for another run.
    """
    config, _, overrides = run
    plan = make_plan(config, repeated)
    safety.warn(config)
    preflight.check(config)
    resources.check(config)
    preflight.check_stages(config, plan)
    overview.show(config, plan, overrides)
    record = partial(named_run.record_as_checked, composed, run, plan)
    this = Launch(config=config, plan=plan, record=record)
    return dispatch.show(this) if config.dry_run else dispatch.execute(this, overrides)


if __name__ == "__main__":
    sys.exit(main())
