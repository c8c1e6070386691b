"""Compose, plan, execute, say what happened: `python -m pipeline.launch [KEY=VALUE …]`."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import commands, outline
from pipeline.config import WHERE
from pipeline.display.masking import mask, mask_yaml
from pipeline.display.outside import say, visible
from pipeline.errors import DONE, Interrupted, StageFailed, UserError
from pipeline.execution import caches, local, slurm
from pipeline.execution.slurm import Launch
from pipeline.outline import catalogue
from pipeline.planning import (
    again,
    arguments,
    compose,
    freshness,
    named_run,
    preflight,
    safety,
    search,
    summary,
    sweep,
)
from pipeline.planning.plan import Step, make_plan, verify
from pipeline.records import rundir, store
from pipeline.records.schemas import Result
from slurm import output

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.planning.arguments import Asked
    from pipeline.planning.compose import Composed
    from pipeline.planning.named_run import Settled

MODELS = "--models"


@dataclass
class Common:
    """What the runs of one command share.

    Args:
        waiting: what is to run on a cluster; a sweep is submitted as a whole.
        repeated: stage directories that were made anew; what runs share is repeated once.
    """

    waiting: list[Launch] = field(default_factory=list)
    repeated: set[Path] = field(default_factory=set)


def main() -> int:
    """Run the command; every way of ending has its exit code and its last line."""
    output.settle()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of Hydra's exit code 1
    words = sys.argv[1:]
    if words[:1] == [MODELS]:
        return commands.ending(lambda: catalogue.show(*words[1:]))
    return commands.ending(lambda: _all(words), at_interrupt="interrupted")


@compose.explained()
def _all(words: list[str]) -> int:
    """Launch all that a command line asks for; return the worst exit code."""
    asked = arguments.read(words)
    sys.argv[1:] = asked.words  # where Hydra reads them
    _check(asked)
    if asked.shows:
        return _show()
    if asked.searches:
        return _search(asked)
    settled = [named_run.settle(*run) for run in _composed(asked)]
    if asked.sweeps:  # the first begins when all are in order
        sweep.check_different(settled)
        _note_joined([config for config, *_ in settled])
    common = Common()
    codes = [launch(run, common) for run in settled]
    if common.waiting and max(codes) == DONE:  # of a sweep all is submitted, or nothing
        codes.append(_submit(common))
    return max(codes, default=DONE)


def _check(asked: Asked) -> None:
    if asked.sweeps:
        sweep.check_name(asked.settings)
    if asked.searches:
        search.check(asked.sweeper)
    if asked.sweeps and asked.plain:
        sweep.check(asked.settings, asked.searches)


def _show() -> int:
    """Have Hydra show what it is asked for; `--cfg job` prints what was given."""
    told = StringIO()
    try:
        with redirect_stdout(told):
            compose.by_hydra(lambda _: None)
    finally:
        print(visible(mask_yaml(told.getvalue())), end="")
    return DONE


def _composed(asked: Asked) -> list[Composed]:
    if asked.plain and asked.sweeps:
        return sweep.composed(asked.settings)
    if asked.plain and not any("hydra" in word for word in asked.settings):
        return [sweep.single(asked.settings)]
    found: list[Composed] = []
    compose.by_hydra(found.append)
    return found


def launch(run: Settled, common: Common) -> int:
    """Do what one run asks for; return the exit code."""
    return commands.told(lambda: _launch(run, common), run[0].root)


def _launch(run: Settled, common: Common) -> int:
    config, choices, overrides = run
    this = Launch(config=config, plan=_plan(config, common))
    _show_plan(this, overrides)
    remote = this.works and config.cluster.name == "slurm"
    if config.dry_run:
        if remote:
            slurm.show(this)
        return DONE
    named_run.record(config, choices, this.plan)
    if remote:
        common.waiting.append(this)
    else:
        _run(this, overrides, common)
    return DONE


def _plan(config: Config, common: Common) -> list[Step]:
    """Return what is to be done, once all is checked that can be without building the network."""
    safety.tell(config)
    plan = make_plan(config, common.repeated)
    preflight.check(config, plan)
    if config.cluster.name == "slurm":
        slurm.check(config)
    caches.settle(Path(config.root))
    verify(plan)
    again.check(plan)
    return plan


def _show_plan(this: Launch, overrides: list[str]) -> None:
    """Print the plan, and what one should know before it is executed.

    Raises:
        UserError: the network to be trained cannot be.
    """
    training = any(step.runs for step in this.plan if step.stage.name == "train")
    counted = _counted(this.plan[0])
    network = outline.look(this.config, counted) if training else None
    unchosen = [] if this.directory.exists() else arguments.unchosen(this.config, overrides)
    summary.show_plan(this.config, this.plan, network, unchosen, counted)
    freshness.tell(this.config, this.plan[0], overrides)


def _counted(prep: Step) -> int | None:
    """Return how many classes prep has found, if what it found is used."""
    if prep.state != "done" or prep.repeats:
        return None
    found = rundir.read_json(prep.dir / rundir.RESULT)["metrics"].get("classes")
    return None if found is None else int(found)


def _run(this: Launch, overrides: list[str], common: Common) -> None:
    """Run the stages on this machine and show what has come of it."""
    common.repeated.update(again.set_aside(this.plan))
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


def _close(this: Launch) -> None:
    """Bring the report and W&B up to date and show the results."""
    from pipeline.execution.after_stage import close

    if this.works or not this.report.exists():
        close(this.directory, this.config.tracking)
    summary.show_results(this.directory, this.report, this.config.stage.run)


def _submit(common: Common) -> int:
    """Hand the jobs of all runs to the cluster; wait for them if asked to."""

    def submit() -> int:
        common.repeated.update(slurm.submit(common.waiting))
        for this in common.waiting:
            if this.config.wait:
                slurm.wait(this)
                summary.show_results(this.directory, this.report, this.config.stage.run)
        return DONE

    return commands.told(submit, common.waiting[0].config.root)


def _search(asked: Asked) -> int:
    repeated: set[Path] = set()
    return search.run(asked.settings, lambda run: _trial(run, Common(repeated=repeated)))


def _trial(run: Composed, common: Common) -> tuple[int, float | None]:
    """Launch one trial of a search to its end; return its exit code and fused top-1, if any."""
    config, choices, overrides = named_run.settle(*run)
    config = config.model_copy(update={"wait": True})
    code = launch((config, choices, overrides), common)
    if common.waiting:
        code = max(code, _submit(common))
    if config.dry_run:
        return code, 0.0  # every trial is shown, none is better
    folder = rundir.run_dir(Path(config.root), config.name) / "eval"
    if not (folder / rundir.RESULT).exists():
        return code, None
    return code, store.read(Result, folder).metrics["fused/top1"]


def _note_joined(configs: list[Config]) -> None:
    """Say of a sweep that its group is not its own: a comparison takes the group as a whole."""
    names = {config.name for config in configs}
    for root, group in sorted({(config.root, config.group) for config in configs if config.group}):
        others = [run for run, its in commands.groups(Path(root))[0].items() if its == group]
        if count := sum(run.name not in names for run in others):
            say(f"note: group '{group}' has {count} other runs; these join it")


def _to_continue(config: Config, overrides: list[str]) -> str:
    """Return the command that continues a run: with the settings that belong to a launch only."""
    kept = [
        mask(override.input_line or "")
        for override in compose.parse(overrides)
        if (key := override.key_or_group.split(".")[0]) in WHERE
        and key not in ("name", "root", "again")
    ]
    return commands.relaunch(Path(config.root), config.name, *kept)


if __name__ == "__main__":
    sys.exit(main())
