"""Show what a launch is about to do: its network, recipe and stages, and notes on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.config import Config
from pipeline.custom import code
from pipeline.planning import defaults, freshness, outline, preflight, starts, summary
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import rundir


def show(config: Config, plan: list[PlannedStage], overrides: list[str]) -> None:
    """Print the plan and its notes.

    Args:
        config: the configuration of the run.
        plan: the stages of the run.
        overrides: the settings of the command line.

    Raises:
        UserError: the images cannot be read, or the network cannot be built or trained. A dry run
            shows its plan before it says that the images cannot be read.
    """
    no_data = preflight.data_error(config, plan)
    if no_data and not config.dry_run:
        raise no_data
    _show(config, plan, overrides, has_data=not no_data)
    if no_data:
        raise no_data


def check(config: Config, plan: list[PlannedStage]) -> None:
    """Refuse a run of a sweep whose images or network `show` would refuse, before the first run.

    Raises:
        UserError: as `show` raises.
    """
    if no_data := preflight.data_error(config, plan):
        raise no_data
    if any(planned.runs for planned in plan if planned.stage.name == "train"):
        images = preflight.images(config, plan[0])
        begins = not starts.changed_files(config, plan)
        outline.of(config, images.classes if images else None, begins=begins)
        outline.try_optimizer(config)


def _show(config: Config, plan: list[PlannedStage], overrides: list[str], has_data: bool) -> None:
    """Print the plan and its notes; without images, the number of classes is unknown."""
    changed = starts.changed_files(config, plan)
    prep = plan[0]
    trains = any(planned.runs for planned in plan if planned.stage.name == "train")
    images = preflight.images(config, prep) if has_data else None
    counted = images.classes if images else None
    network = outline.of(config, counted, begins=not changed) if trains else None
    if rundir.run_dir(Path(config.root), config.name).exists():
        notes = list(code.notes(config))
    else:
        notes = defaults.unchosen(config, overrides)
    notes += [*defaults.given_again(overrides), *changed]
    notes += _untried(config, trains, prep.runs and has_data)
    notes += preflight.notes(config, prep, images.side) if trains and images else []
    summary.show_plan(config, plan, network, notes, counted)
    freshness.note_changes(config, prep, overrides)


def _untried(config: Config, trains: bool, prepares: bool) -> Iterator[str]:
    """Yield notes on settings that could not be tried on this machine, with the reason."""
    if trains and (unknown := outline.try_optimizer(config)):
        yield f"train.optimizer={config.train.optimizer} was not tried: {unknown.why}"
    if config.data.name == "custom" and prepares:
        tried = outline.try_images(config)
        if isinstance(tried, outline.Unknown):
            yield f"data.target={config.data.target} was not tried: {tried.why}"
