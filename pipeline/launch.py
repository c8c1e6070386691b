"""Compose, plan and execute runs: `python -m pipeline.launch [KEY=VALUE …]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.custom import code
from pipeline.display import exits
from pipeline.display.errors import DONE
from pipeline.execution import dispatch, resources, slurm
from pipeline.execution.dispatch import Outcome
from pipeline.execution.slurm import Launch
from pipeline.planning import (
    again,
    arguments,
    compose,
    defaults,
    explain,
    freshness,
    named_run,
    outline,
    preflight,
    safety,
    search,
    starts,
    summary,
    sweep,
)
from pipeline.planning.outline import catalogue
from pipeline.planning.plan import make_plan, verify
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import caches, rundir, store
from pipeline.records.schemas import Result
from slurm import output, private

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.planning.arguments import Asked
    from pipeline.planning.compose import Composed
    from pipeline.planning.named_run import Settled

MODELS = "--models"


def main() -> int:
    """Run the command; print a last line that says how it ended; return its exit code."""
    output.settle()
    private.keep_out()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of exiting with 1
    words = sys.argv[1:]
    if words[:1] == [MODELS]:
        return exits.ending(lambda: catalogue.show(*words[1:]))
    return exits.ending(lambda: _all(words), at_interrupt="interrupted")


@explain.explained()
def _all(words: list[str]) -> int:
    """Launch the runs of a command line; return the worst exit code."""
    rundir.here()  # fails with one line; Hydra would fail with a traceback
    asked = arguments.read(words)
    sys.argv[1:] = asked.words  # where Hydra reads them
    _check(asked)
    if asked.shows:
        return compose.show()
    if asked.searches:
        return _search(asked)
    runs = sweep.runs(asked)
    sweep.refuse_idle(runs)
    settled = [named_run.settle(*run) for run in runs]
    if asked.sweeps:  # check the whole sweep before the first run begins
        sweep.check_different(settled)
        sweep.note_joined([config for config, *_ in settled])
    return _each(runs, settled)


def _each(runs: list[Composed], settled: list[Settled]) -> int:
    """Launch runs one after the other; on a cluster, a sweep is submitted as a whole or not."""
    code, repeated, waiting = DONE, frozenset[Path](), list[Launch]()
    for composed, run in zip(runs, settled, strict=True):
        outcome = launch(composed, run, repeated)
        code, repeated = exits.worst(code, outcome.code), repeated | outcome.repeated
        waiting += [outcome.waiting] if outcome.waiting else []
    return dispatch.submit(waiting).code if waiting and code == DONE else code


def _check(asked: Asked) -> None:
    if asked.sweeps:
        sweep.check_name(asked.settings)
    if asked.searches:
        search.check(asked.sweeper)
    if asked.sweeps and asked.plain:
        sweep.check(asked.settings, asked.searches, asked.folder)


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
    this = Launch(config=config, plan=_plan(config, repeated))
    no_data = preflight.data_error(config, this.plan)
    if no_data and not config.dry_run:
        raise no_data
    _show_plan(this, overrides, has_data=not no_data)
    if no_data:
        raise no_data
    remote = this.works and config.cluster.name == "slurm"
    if config.dry_run:
        if remote:
            slurm.show(this)
        summary.show_dry_run(Path(config.root))
        return Outcome()

    def record() -> None:
        named_run.refuse_changed(config, named_run.settle(*composed)[0])
        named_run.record(config, choices, this.plan)

    if remote:
        return Outcome(waiting=replace(this, record=record))
    record()
    return dispatch.run_here(this, overrides)


def _plan(config: Config, repeated: frozenset[Path]) -> list[PlannedStage]:
    """Return the checked plan of a run; neither images nor network are checked yet."""
    safety.tell(config)
    plan = make_plan(config, repeated)
    preflight.check(config)
    if config.cluster.name == "slurm":
        resources.check(config)
    caches.settle(Path(config.root))
    verify(plan)
    again.check(plan)
    return plan


def _show_plan(this: Launch, overrides: list[str], has_data: bool) -> None:
    """Print the plan and its notes; without data, the number of classes is unknown.

    Raises:
        UserError: the network cannot be built or trained.
    """
    changed = starts.check(this.config, this.plan)
    training = any(step.runs for step in this.plan if step.stage.name == "train")
    prep = this.plan[0]
    images = preflight.look(this.config, prep) if has_data else None
    counted = images.classes if images else None
    network = outline.look(this.config, counted, begins=not changed) if training else None
    if this.directory.exists():
        notes = list(code.told(this.config))
    else:
        notes = defaults.unchosen(this.config, overrides)
    notes += [*defaults.given_again(overrides), *changed]
    notes += _untried(this.config, training, prep.runs and has_data)
    notes += preflight.notes(this.config, prep, images.side) if training and images else []
    summary.show_plan(this.config, this.plan, network, notes, counted)
    freshness.tell(this.config, this.plan[0], overrides)


def _untried(config: Config, training: bool, preparing: bool) -> Iterator[str]:
    """Yield notes on settings that could not be tried on this machine, with the reason."""
    if training and (unknown := outline.try_optimizer(config)):
        yield f"train.optimizer={config.train.optimizer} was not tried: {unknown.why}"
    if config.data.name == "custom" and preparing:
        told = outline.try_images(config)
        if isinstance(told, outline.Unknown):
            yield f"data.target={config.data.target} was not tried: {told.why}"


def _search(asked: Asked) -> int:
    """Launch one run after the other, each chosen by the results of those before."""
    repeated: set[Path] = set()

    def trial(run: Composed) -> tuple[int, float | None]:
        config, choices, overrides = named_run.settle(*run)
        config = config.model_copy(update={"wait": True})
        outcome = launch(run, (config, choices, overrides), frozenset(repeated))
        if outcome.waiting:
            outcome = dispatch.submit([outcome.waiting])
        repeated.update(outcome.repeated)
        return outcome.code, _score(config)

    return search.run(asked.settings, trial, asked.folder)


def _score(config: Config) -> float | None:
    """Return the fused top-1 of a run, if there is one; for a dry run, a neutral value."""
    folder = rundir.run_dir(Path(config.root), config.name) / "eval"
    if config.dry_run:
        return 0.0
    there = (folder / rundir.RESULT).exists()
    return store.read(Result, folder).metrics["fused/top1"] if there else None


if __name__ == "__main__":
    sys.exit(main())
