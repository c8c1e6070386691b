"""Compose, plan, execute, say what happened: `python -m pipeline.launch [KEY=VALUE …]`."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from pipeline import (
    again,
    caches,
    cluster,
    commands,
    compose,
    executors,
    freshness,
    outline,
    preflight,
    rundir,
    runs,
    safety,
    summary,
    sweep,
)
from pipeline.arguments import readable, unchosen
from pipeline.cluster import Launch
from pipeline.config import WHERE
from pipeline.errors import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    Interrupted,
    StageFailed,
    UserError,
    gist,
    nearest,
    surroundings,
)
from pipeline.masking import mask, mask_yaml
from pipeline.outside import say, visible
from pipeline.plan import make_plan, verify
from slurm import output

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pipeline.config import Config


SHOWING = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help")
MODELS = "--models"


def launch(
    config: Config,
    choices: dict[str, str],
    overrides: list[str],
    waiting: list[Launch],
    repeated: set[Path],
) -> int:
    """Do what one configuration asks for; return the exit code.

    What is to run on a cluster is added to `waiting`: a sweep is submitted as a whole. The stage
    directories that are made anew are added to `repeated`: what runs of a sweep share is repeated
    once.
    """
    try:
        _launch(config, choices, overrides, waiting, repeated)
    except UserError as error:
        return _say(error, BAD_INPUT)
    except StageFailed as error:
        return _say(error, FAILED)
    except OSError as error:
        return _say(surroundings(error, config.root), BAD_INPUT)
    return DONE


def _launch(
    config: Config,
    choices: dict[str, str],
    overrides: list[str],
    waiting: list[Launch],
    repeated: set[Path],
) -> None:
    safety.tell(config)
    plan = make_plan(config, repeated)
    preflight.check(config, plan[0])
    caches.settle(Path(config.root))
    verify(plan)
    again.check(plan)
    training = any(step.runs for step in plan if step.stage.name == "train")
    network = outline.look(config) if training else None
    directory = rundir.run_dir(Path(config.root), config.name)
    left_out = [] if directory.exists() else unchosen(config, overrides)
    summary.show_plan(config, plan, network, left_out)
    freshness.tell(config, plan[0], overrides)
    worked = any(step.runs for step in plan)
    remote = worked and config.cluster.name == "slurm"
    if config.dry_run:
        if remote:
            cluster.show(Launch(config=config, plan=plan, directory=directory))
        return
    runs.record(config, choices, plan)
    if remote:
        waiting.append(Launch(config=config, plan=plan, directory=directory))
        return
    repeated.update(again.set_aside(plan))
    try:
        executors.run_local(plan, config)
    except Interrupted:
        raise Interrupted(f"stopped; to continue: {_again(config, overrides)}") from None
    except (UserError, StageFailed):
        _close(config, directory, worked)
        raise
    _close(config, directory, worked)


def _close(config: Config, directory: Path, worked: bool) -> None:
    """Bring the report and W&B up to date and show the results."""
    from pipeline.closing import close

    report = directory / "report.html"
    if worked or not report.exists():
        close(directory, config.tracking)
    summary.show_results(directory, report)


def _submit(waiting: list[Launch]) -> int:
    """Hand the jobs of all runs to the cluster; wait for them if asked to."""
    try:
        cluster.submit(waiting)
        for launch in waiting:
            if launch.config.wait:
                cluster.wait(launch)
                summary.show_results(launch.directory, launch.directory / "report.html")
    except UserError as error:
        return _say(error, BAD_INPUT)
    except StageFailed as error:
        return _say(error, FAILED)
    return DONE


def _trial(run: sweep.Composed, codes: list[int], repeated: set[Path]) -> float | None:
    """Do what one trial of a search asks for, to its end; return fused top-1, None if it failed."""
    config, choices, overrides = runs.settle(*run)
    config = config.model_copy(update={"wait": True})
    waiting: list[Launch] = []
    codes.append(launch(config, choices, overrides, waiting, repeated))
    if waiting:
        codes.append(_submit(waiting))
    if config.dry_run:
        return 0.0  # every trial is shown, none is better
    result = rundir.run_dir(Path(config.root), config.name) / "eval" / rundir.RESULT
    return rundir.read_json(result)["metrics"]["fused/top1"] if result.exists() else None


def _note_joined(configs: list[Config]) -> None:
    """Say of a sweep that its group is not its own: a comparison takes the group as a whole."""
    names = {config.name for config in configs}
    for root, group in sorted({(config.root, config.group) for config in configs if config.group}):
        others = [run for run, its in commands.groups(Path(root))[0].items() if its == group]
        if count := sum(run.name not in names for run in others):
            say(f"note: group '{group}' has {count} other runs; these join it")


def _again(config: Config, overrides: list[str]) -> str:
    """Return the command that continues a run: with the settings that belong to a launch only."""
    kept = [
        override.input_line or ""
        for override in compose.parse(overrides)
        if (key := override.key_or_group.split(".")[0]) in WHERE
        and key not in ("name", "root", "again")
    ]
    return commands.relaunch(Path(config.root), config.name, *kept)


def _list_models(glob: str = "*", *more: str) -> int:
    """Print the classifiers of timm and torchvision whose names match."""
    if more:
        raise UserError(f"one pattern, in quotes: python -m pipeline.launch {MODELS} '{glob}'")
    answer = outline.ask(["--names"])
    if isinstance(answer, outline.Unknown):
        raise UserError(f"the models cannot be listed: {answer.why}; install the libraries")
    found = [(lib, name) for lib, names in answer.items() for name in fnmatch.filter(names, glob)]
    if not found:
        everything = sorted({name for names in answer.values() for name in names})
        raise UserError(f"no model is called '{glob}'; {nearest(glob, everything)}")
    for library, name in found:
        say(f"model={library} model.name={name}")
    counts = {library: sum(lib == library for lib, _ in found) for library in answer}
    told = ", ".join(f"{count:,} of {library}" for library, count in counts.items())
    say(f"{len(found):,} models: {told}")
    return DONE


def _say(error: Exception, code: int) -> int:
    print(visible(f"error: {mask(str(error))}"), file=sys.stderr)
    return code


@contextmanager
def _masked() -> Iterator[None]:
    """Mask secrets in what Hydra shows: `--cfg job` prints what was given."""
    told = StringIO()
    try:
        with redirect_stdout(told):
            yield
    finally:
        print(visible(mask_yaml(told.getvalue())), end="")


def main() -> int:
    """Run the command; every way of ending has its exit code and its last line."""
    output.settle()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of Hydra's exit code 1
    arguments = sys.argv[1:]
    if arguments[:1] == [MODELS]:
        return commands.ending(lambda: _list_models(*arguments[1:]))
    try:
        arguments = sys.argv[1:] = readable(arguments)
    except UserError as error:
        return _say(error, BAD_INPUT)
    settings = [word for word in arguments if word not in ("-m", "--multirun")]
    sweeping = settings != arguments
    sweepers = [word for word in settings if word.startswith("hydra/sweeper=")]
    searching = sweeping and bool(sweepers) and sweepers[-1] != "hydra/sweeper=basic"
    begun = False  # to search
    composed: list[sweep.Composed] = []
    codes: list[int] = []
    waiting: list[Launch] = []
    repeated: set[Path] = set()

    @hydra.main(version_base="1.3", config_path=str(compose.CONF), config_name="config")
    def once(tree: DictConfig) -> float | None:
        here = HydraConfig.get()
        choices = {k: v for k, v in here.runtime.choices.items() if not k.startswith("hydra/")}
        words = OmegaConf.to_container(here.overrides.task)  # with ${…} as it is written
        assert isinstance(words, list)
        run = (tree, choices, words)
        if searching:  # what comes next depends on how this one ends
            nonlocal begun
            begun = True
            return _trial(run, codes, repeated)
        composed.append(run)
        return None

    try:
        compose.check_arguments(arguments)
        if searching and find_spec("optuna") is None:
            raise UserError("a search needs Optuna: pip install hydra-optuna-sweeper")
        plain = not any(word.startswith("-") for word in settings)
        if sweeping and plain:
            sweep.check(settings, searching)
        if sweeping and plain and not searching:
            composed.extend(sweep.composed(settings))
        elif any(word.partition("=")[0] in SHOWING for word in settings):
            with _masked():
                once()
        elif searching:
            with sweep.noted(settings):
                once()
        else:
            once()
        # the first begins when all of a sweep are in order
        checked = [runs.settle(*run) for run in composed]
        if sweeping:
            sweep.check_different(checked)
            _note_joined([config for config, *_ in checked])
        codes.extend(launch(*run, waiting, repeated) for run in checked)
        if waiting and max(codes) == DONE:  # of a sweep all is submitted, or nothing
            codes.append(_submit(waiting))
    except UserError as error:
        return _say(error, BAD_INPUT)
    except compose.HYDRA_ERRORS as error:
        return _say(UserError(compose.explain_hydra(error)), BAD_INPUT)
    except OSError as error:
        return _say(surroundings(error, "the root"), BAD_INPUT)
    except KeyboardInterrupt as error:
        return _say(Exception(str(error) or "interrupted"), INTERRUPTED)
    except Exception as error:
        if searching and not begun:
            return _say(UserError(f"Optuna refuses the search: {gist(error)}"), BAD_INPUT)
        if not (isinstance(error, ValueError) and max(codes, default=DONE) != DONE):
            raise  # else it is Optuna's word for a search none of whose trials ended well
    return max(codes, default=DONE)


if __name__ == "__main__":
    sys.exit(main())
