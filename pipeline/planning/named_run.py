"""A run: a name for a configuration, frozen at its first launch.

Launching an existing name takes up its frozen configuration, so that `name=X` alone continues it.
Settings of where and who watches may differ from launch to launch; what has decided a result, or is
deciding one, may not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import WHERE, Config, flatten, rules
from pipeline.config.base import STAGE_NAMES, Values
from pipeline.custom import code
from pipeline.errors import UserError
from pipeline.planning import again, compose, taking_up
from pipeline.planning.step import Step
from pipeline.records import disk, rundir, store
from pipeline.records.provenance import PROJECT, command_line, source_revision, versions
from pipeline.records.schemas import Run
from slurm.records import CANCELLED

if TYPE_CHECKING:
    from omegaconf import DictConfig

RUN = Run.FILE
CONFIG = "config.yaml"
PER_LAUNCH = ("stage", "again", "root", "dry_run", "wait")


Settled = tuple[Config, dict[str, str], list[str]]


def settle(tree: DictConfig, choices: dict[str, str], overrides: list[str]) -> Settled:
    """Return configuration and choices to use: as asked for a new name, else those of the run.

    What no stage of the run has read yet is as this launch asks, where it asks for anything.

    Raises:
        UserError: the tree does not fit the schema, or something decided was asked to differ.
    """
    values = compose.values(tree, choices, overrides)
    directory = rundir.run_dir(Path(str(values["root"])), str(values["name"]))
    if not rundir.there(directory / CONFIG):
        return compose.finish(values), choices, overrides
    known = store.read(Run, directory).choices
    old = frozen(directory).model_dump(mode="json")
    read = taking_up.decided(directory)
    before, after = {**settled(flatten(old)), **known}, {**flatten(values), **choices}
    changed = taking_up.differences(overrides, before, after, read)
    if changed:
        raise UserError(
            f"run '{values['name']}' exists with other settings: {'; '.join(changed)}. "
            f"Leave them out to continue it, or choose another name={_freed(directory)}"
        )
    merged, choices = taking_up.merged(overrides, (old, known), (values, choices), read)
    compose.refuse_two_lengths(overrides, merged)
    where = taking_up.touched(overrides).union(PER_LAUNCH).intersection(WHERE)
    merged = rules.settle(merged | {section: values[section] for section in where})
    as_it_is = all(merged[section] == old[section] for section in old if section not in WHERE)
    return (compose.check if as_it_is else compose.finish)(merged), choices, overrides


def settled(flat: Values) -> Values:
    """Return frozen settings, by dotted key, as they would be frozen today.

    A relative `data.root` was once kept as written, and looked for below the checkout.
    """
    root = flat.get("data.root")
    return flat | {"data.root": str(rundir.absolute(root, PROJECT))} if root else flat


def _freed(directory: Path) -> str:
    """Return how a name is freed under which nothing of worth has been made."""
    made = [
        directory / stage / name
        for stage in STAGE_NAMES
        for name in (rundir.RESULT, "checkpoints")
        if stage != "prep"
    ]
    if any(path.exists() for path in made):
        return ""
    return f"; nothing is trained under it yet, so `rm -r {directory}` frees it, too"


def frozen(directory: Path) -> Config:
    """Return the configuration a run was frozen with.

    Raises:
        UserError: it does not fit the present schema.
    """
    content = rundir.read_yaml(directory / CONFIG)
    try:
        return compose.check(content)
    except UserError as error:
        raise UserError(
            f"{directory / CONFIG} was written by another version ({error}); choose another name="
        ) from None


def record(config: Config, choices: dict[str, str], plan: list[Step]) -> Path:
    """Write `config.yaml`, `run.json` and the links of a run; return its directory."""
    directory = rundir.run_dir(Path(config.root), config.name)
    code.keep(config)
    directory.mkdir(parents=True, exist_ok=True)
    decides = _decides(config, directory)
    if decides:
        rundir.write_yaml(directory / CONFIG, config.model_dump(mode="json", exclude={"again"}))
    for step in plan:
        if step.wanted or step.state == "done":
            disk.link(directory / step.stage.name, step.dir)
    store.write(_described(config, choices, directory, decides), directory)
    (directory / CANCELLED).unlink(missing_ok=True)
    return directory


def _decides(config: Config, directory: Path) -> bool:
    """Whether a configuration is new to a run, or changes what decides a result."""
    if not rundir.there(directory / CONFIG):
        return True
    return frozen(directory).model_dump(exclude=set(WHERE)) != config.model_dump(exclude=set(WHERE))


def _described(config: Config, choices: dict[str, str], directory: Path, decides: bool) -> Run:
    there = rundir.there(directory / RUN)
    known = store.read(Run, directory) if there else Run(choices=choices)
    custom = code.origins(config, known.custom)
    return Run(
        **({"custom": custom} if custom else {}),
        name=config.name,
        group=config.group,
        command=command_line() if decides else known.command,
        choices=choices,
        created=known.created or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        source=dict(source_revision()),
        versions=versions(),
        wandb=known.wandb or {"id": wandb_id(directory)},
        job_ids=known.job_ids,
    )


def note_jobs(directory: Path, ids: dict[str, str]) -> None:
    """Add the ids of jobs, by stage, to what `run.json` lists."""
    known = store.read(Run, directory)
    store.write(known.model_copy(update={"job_ids": [*known.job_ids, ids]}), directory)


def wandb_id(directory: Path) -> str:
    """Return an id that belongs to the run and its place, never to a job or an attempt.

    An agent of a W&B sweep has one for it already.
    """
    if "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ:
        return os.environ["WANDB_RUN_ID"]
    return hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:12]


def write_question(step: Step) -> None:
    """Write `stage.yaml`, the question a stage directory answers; once it is begun, it stays."""
    path = step.dir / rundir.STAGE
    if (step.dir / rundir.EVENTS).exists() and path.exists():
        return
    question = json.loads(json.dumps(step.question.values()))  # plain lists, no tuples
    parents = [path.parent.with_name(f"{n}-{f}") for n, f in step.question.parents.items()]
    note = {again.NOTE: counts} if (counts := again.note(step.dir, parents)) else {}
    content = {**question, **note}
    if not path.exists() or rundir.read_yaml(path) != content:
        rundir.write_yaml(path, content)


def write_where(step: Step, config: Config) -> None:
    """Write `where.yaml`: how to run the stage here, of the newest launch."""
    where = config.model_dump(mode="json", include={"cluster", "checkpoint"})
    where["cluster"]["processes_per_node"] = config.cluster.processes(step.stage.name)
    rundir.write_yaml(step.dir / rundir.WHERE, where)
