"""Compose, plan, execute, say what happened: `python -m pipeline.launch [KEY=VALUE …]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig

from pipeline import cluster, compose, executors, preflight, rundir, runs, summary, sweep
from pipeline.cluster import Launch
from pipeline.errors import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    Interrupted,
    StageFailed,
    UserError,
)
from pipeline.plan import make_plan, verify

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pipeline.config import Config


def launch(
    config: Config, choices: dict[str, str], overrides: list[str], waiting: list[Launch]
) -> int:
    """Do what one configuration asks for; return the exit code.

    What is to run on a cluster is added to `waiting`: a sweep is submitted as a whole.
    """
    try:
        _launch(config, choices, overrides, waiting)
    except UserError as error:
        return _say(error, BAD_INPUT)
    except StageFailed as error:
        return _say(error, FAILED)
    return DONE


def _launch(
    config: Config, choices: dict[str, str], overrides: list[str], waiting: list[Launch]
) -> None:
    config = runs.settle(config, choices, overrides)
    plan = make_plan(config)
    preflight.check(config)
    verify(plan)
    summary.show_plan(config, plan)
    worked = any(step.runs for step in plan)
    remote = worked and config.cluster.name == "slurm"
    directory = rundir.run_dir(Path(config.root), config.name)
    if config.dry_run:
        if remote:
            cluster.show(Launch(config=config, plan=plan, directory=directory))
        return
    runs.record(config, choices, plan)
    if remote:
        waiting.append(Launch(config=config, plan=plan, directory=directory))
        return
    try:
        executors.run_local(plan, config)
    except Interrupted:
        raise Interrupted(f"stopped; to continue: {_again(config)}") from None
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


def _again(config: Config) -> str:
    root = "" if config.root == "outputs" else f" root={config.root}"
    return f"python -m pipeline.launch name={config.name}{root}"


def _say(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def main() -> int:
    """Run the command; every way of ending has its exit code and its last line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of Hydra's exit code 1
    arguments = sys.argv[1:]
    settings = [word for word in arguments if word not in ("-m", "--multirun")]
    sweeping = settings != arguments
    composed: list[sweep.Composed] = []
    codes: list[int] = []
    waiting: list[Launch] = []

    @hydra.main(version_base="1.3", config_path="../conf", config_name="config")
    def once(tree: DictConfig) -> None:
        here = HydraConfig.get()
        choices = {k: v for k, v in here.runtime.choices.items() if not k.startswith("hydra/")}
        composed.append((tree, choices, list(here.overrides.task)))

    try:
        compose.check_arguments(arguments)
        if sweeping and not any(word.startswith("-") for word in settings):
            composed.extend(sweep.composed(settings))
        else:
            once()
        # the first begins when all of a sweep are in order
        checked = [(compose.to_config(*run), *run[1:]) for run in composed]
        codes.extend(launch(*run, waiting) for run in checked)
        if waiting and max(codes) == DONE:  # of a sweep all is submitted, or nothing
            codes.append(_submit(waiting))
    except UserError as error:
        return _say(error, BAD_INPUT)
    except compose.HYDRA_ERRORS as error:
        return _say(UserError(compose.explain_hydra(error)), BAD_INPUT)
    except OSError as error:
        return _say(UserError(f"{error.filename}: {error.strerror}"), BAD_INPUT)
    except KeyboardInterrupt as error:
        return _say(Exception(str(error) or "interrupted"), INTERRUPTED)
    return max(codes, default=DONE)


if __name__ == "__main__":
    sys.exit(main())
