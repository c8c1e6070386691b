"""Launch the runs of a command one after the other: those of a sweep, or those of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline.display import exits
from pipeline.display.errors import DONE
from pipeline.execution import dispatch
from pipeline.execution.dispatch import Outcome
from pipeline.execution.slurm import Launch
from pipeline.planning import named_run, overview, preflight
from pipeline.planning import search as optuna
from pipeline.planning.arguments import CommandLine
from pipeline.planning.compose import Composed
from pipeline.planning.named_run import Settled
from pipeline.planning.plan import make_plan

Run = tuple[Composed, Settled]  # what the user asked for, and the configuration that follows
One = Callable[[Composed, Settled, frozenset[Path]], Outcome]  # launches one run


def check(runs: Sequence[Run]) -> None:
    """Check all runs of a sweep on this machine, so that no run begins if a later one is refused.

    A cluster gets a sweep as a whole, and a dry run shows each run before its error.

    Raises:
        UserError: a run has no images or no root that can be written, or its network cannot be
            built or trained.
    """
    for _, (config, *_) in runs if len(runs) > 1 else ():
        if config.cluster.name == "local" and not config.dry_run:
            preflight.check(config)
            overview.check(config, make_plan(config, frozenset()))


def each(runs: Sequence[Run], launch: One, repeated: frozenset[Path] = frozenset()) -> Outcome:
    """Launch runs one after the other; on a cluster, a sweep is submitted as a whole or not.

    Args:
        runs: what the user asked for, and the configuration that follows, of each run.
        launch: launches one run.
        repeated: stage directories that this command has already repeated.
    """
    code, waiting = DONE, list[Launch]()
    for composed, run in runs:
        found = exits.result_or_code(partial(launch, composed, run, repeated), run[0].root)
        outcome = Outcome(found) if isinstance(found, int) else found
        code, repeated = exits.worst(code, outcome.code), repeated | outcome.repeated
        waiting += [outcome.waiting] if outcome.waiting else []
    if waiting and code == DONE:
        outcome = dispatch.submit(waiting)
        code, repeated = outcome.code, repeated | outcome.repeated
    return Outcome(code, repeated=repeated)


def search(command: CommandLine, launch: One) -> int:
    """Launch the runs that Optuna proposes, each from the results of those before.

    Returns:
        The worst exit code.
    """
    repeated = frozenset[Path]()

    def trial(proposed: Composed) -> tuple[int, float | None]:
        nonlocal repeated
        config, choices, overrides = named_run.settle(*proposed)
        config = config.model_copy(update={"wait": True})
        outcome = each([(proposed, (config, choices, overrides))], launch, repeated)
        repeated = outcome.repeated
        return outcome.code, optuna.score(config)

    return optuna.run(command.settings, trial, command.folder)
