"""Compose, plan and execute runs: `python -m pipeline.launch [KEY=VALUE …]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.display import exits
from pipeline.display.errors import DONE
from pipeline.execution import dispatch, resources
from pipeline.execution.dispatch import Outcome
from pipeline.execution.slurm import Launch
from pipeline.planning import (
    again,
    arguments,
    compose,
    explain,
    named_run,
    overview,
    preflight,
    safety,
    search,
    sweep,
)
from pipeline.planning.outline import catalogue
from pipeline.planning.plan import make_plan, verify
from pipeline.records import caches, rundir
from slurm import output, private

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.planning.arguments import Asked
    from pipeline.planning.compose import Composed
    from pipeline.planning.named_run import Settled
    from pipeline.planning.planned_stage import PlannedStage

MODELS = "--models"


def main() -> int:
    """Run the command; print a last line that says how it ended; return its exit code."""
    output.settle()
    private.keep_out()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of exiting with 1
    words = sys.argv[1:]
    if words[:1] == [MODELS]:
        return exits.ending(lambda: catalogue.show(*words[1:]))
    return exits.ending(lambda: _command(words), at_interrupt="interrupted")


@explain.explained()
def _command(words: list[str]) -> int:
    """Launch the runs of a command line; return the worst exit code."""
    rundir.here()  # fails with one line; Hydra would fail with a traceback
    asked = arguments.read(words)
    sys.argv[1:] = asked.words  # where Hydra reads them
    sweep.check(asked)
    if asked.shows:
        return compose.show()
    if asked.searches:
        return _search(asked)
    return _each(sweep.settled(asked)).code


def _search(asked: Asked) -> int:
    """Launch one run after the other, each chosen by the results of those before."""
    repeated = frozenset[Path]()

    def trial(proposed: Composed) -> tuple[int, float | None]:
        nonlocal repeated
        config, choices, overrides = named_run.settle(*proposed)
        config = config.model_copy(update={"wait": True})
        outcome = _each([(proposed, (config, choices, overrides))], repeated)
        repeated = outcome.repeated
        return outcome.code, search.score(config)

    return search.run(asked.settings, trial, asked.folder)


def _each(runs: list[tuple[Composed, Settled]], repeated: frozenset[Path] = frozenset()) -> Outcome:
    """Launch runs one after the other; on a cluster, a sweep is submitted as a whole or not."""
    code, waiting = DONE, list[Launch]()
    for composed, run in runs:
        outcome = launch(composed, run, repeated)
        code, repeated = exits.worst(code, outcome.code), repeated | outcome.repeated
        waiting += [outcome.waiting] if outcome.waiting else []
    if waiting and code == DONE:
        outcome = dispatch.submit(waiting)
        code, repeated = outcome.code, repeated | outcome.repeated
    return Outcome(code, repeated=repeated)


def launch(composed: Composed, run: Settled, repeated: frozenset[Path] = frozenset()) -> Outcome:
    """Launch one run.

    Args:
        composed: what the user asked for.
        run: the configuration, choices and overrides that follow.
        repeated: stage directories that this command has already repeated, for another run.
    """
    found = exits.told(lambda: _launch(composed, run, repeated), run[0].root)
    return Outcome(found) if isinstance(found, int) else found


def _launch(composed: Composed, run: Settled, repeated: frozenset[Path]) -> Outcome:
    config, choices, overrides = run
    plan = _checked_plan(config, repeated)

    def record() -> None:
        named_run.refuse_changed(config, named_run.settle(*composed)[0])
        named_run.record(config, choices, plan)

    this = Launch(config=config, plan=plan, record=record)
    no_data = preflight.data_error(config, plan)
    if no_data and not config.dry_run:
        raise no_data
    overview.show(config, plan, overrides, has_data=not no_data)
    if no_data:
        raise no_data
    if config.dry_run:
        return dispatch.show(this)
    return dispatch.execute(this, overrides)


def _checked_plan(config: Config, repeated: frozenset[Path]) -> list[PlannedStage]:
    """Return the plan of a run; neither its images nor its network are checked yet."""
    safety.tell(config)
    plan = make_plan(config, repeated)
    preflight.check(config)
    if config.cluster.name == "slurm":
        resources.check(config)
    caches.settle(Path(config.root))
    verify(plan)
    again.refuse_in_use(plan)
    return plan


if __name__ == "__main__":
    sys.exit(main())
