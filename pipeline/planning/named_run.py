"""Settle, freeze and read the configuration of a run; a run is the name of a configuration.

The first launch of a name freezes its configuration. A later launch of that name uses the frozen
configuration, so `name=X` alone continues the run. Settings of `cluster` and `tracking` may differ
between launches; settings that a begun stage has read may not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import WHERE, Config, flatten, rules
from pipeline.config.base import STAGE_NAMES, Values
from pipeline.custom import code
from pipeline.display.errors import UserError
from pipeline.planning import compose, taking_up
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import disk, named, repeats, rundir, store
from pipeline.records.provenance import PROJECT, command_line, source_revision, versions
from pipeline.records.schemas import Run, Submission
from slurm.records import CANCELLED

if TYPE_CHECKING:
    from omegaconf import DictConfig

RUN = Run.FILE
CONFIG = "config.yaml"
PER_LAUNCH = ("stage", "again", "root", "dry_run", "wait")


Settled = tuple[Config, dict[str, str], list[str]]


def settle(tree: DictConfig, choices: dict[str, str], overrides: list[str]) -> Settled:
    """Return the configuration and choices to use: those requested, or those of an existing run.

    A setting that this launch gives is taken over if no stage of the run has read it yet.

    Raises:
        UserError: the settings do not fit the schema, or would change a begun stage.
    """
    values = compose.values(tree, choices, overrides)
    directory = rundir.run_dir(Path(str(values["root"])), str(values["name"]))
    _check_whole(directory)
    if not rundir.there(directory / CONFIG):
        return compose.finish(values), choices, overrides
    known = store.read(Run, directory).choices
    old = frozen(directory).model_dump(mode="json")
    read = taking_up.decided(directory)
    requested = taking_up.as_read(overrides, old, values)
    before, after = {**settled(flatten(old)), **known}, {**flatten(requested), **choices}
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
    return (compose.validated if as_it_is else compose.finish)(merged), choices, overrides


def _check_whole(directory: Path) -> None:
    """Refuse a run that lost one of its two files; a launch may die before it writes the second.

    Raises:
        UserError: the message names the file and the cure.
    """
    if rundir.there(directory / CONFIG) and not rundir.there(directory / RUN):
        lost = RUN
    elif not rundir.there(directory / CONFIG) and _has_begun(directory):
        lost = CONFIG
    else:
        return
    raise UserError(
        f"{directory / lost} is gone; restore it, or `rm -r {shlex.quote(str(directory))}`, which "
        "leaves the stages, and launch again with all settings of the run"
    )


def _has_begun(directory: Path) -> bool:
    """Whether a stage was started for a run, and not only for another that shares it."""
    return any(
        directory.name in (row.run, *row.runs)
        for stage in STAGE_NAMES
        for row in store.rows(Submission, directory / stage)
    )


def record_as_checked(composed: compose.Composed, run: Settled, plan: list[PlannedStage]) -> None:
    """Write a run, unless another launch has written it since this launch checked it.

    Raises:
        UserError: the run is there now, with other settings.
    """
    config, choices, _ = run
    refuse_changed(config, settle(*composed)[0])
    record(config, choices, plan)


def refuse_changed(config: Config, now: Config) -> None:
    """Refuse to write a run that another launch has written meanwhile, with other settings.

    Args:
        config: the configuration that this launch has checked.
        now: the configuration that would follow now.

    Raises:
        UserError: they differ in a setting that decides results.
    """
    own, other = (each.model_dump(exclude=set(WHERE)) for each in (config, now))
    if own != other:
        raise UserError(
            f"run '{config.name}' was launched with other settings at the same moment, and is now "
            "that run; launch this one again with another name="
        )


def settled(flat: Values) -> Values:
    """Return frozen settings, by dotted key, as the current version would freeze them.

    Older versions kept a relative `data.root` as written, relative to the checkout.
    """
    root = flat.get("data.root")
    return flat | {"data.root": str(rundir.absolute(root, PROJECT))} if root else flat


def _freed(directory: Path) -> str:
    """Return advice how to free a name under which nothing was trained or is under way; else ""."""
    made = [
        directory / stage / name
        for stage in STAGE_NAMES
        for name in (rundir.RESULT, "checkpoints")
        if stage != "prep"
    ]
    under_way = any(taking_up.at_work(directory / stage) for stage in STAGE_NAMES)
    if under_way or any(path.exists() for path in made):
        return ""
    return f"; nothing is trained under it yet, so `rm -r {directory}` frees it, too"


def frozen(directory: Path) -> Config:
    """Return the frozen configuration of a run.

    Raises:
        UserError: the frozen configuration does not fit the current schema.
    """
    content = rundir.read_yaml(directory / CONFIG)
    try:
        return compose.validated(content)
    except UserError as error:
        raise UserError(
            f"{directory / CONFIG} was written by another version ({error}); choose another name="
        ) from None


def record(config: Config, choices: dict[str, str], plan: list[PlannedStage]) -> Path:
    """Write `config.yaml`, `run.json` and the links of a run; return its directory."""
    directory = rundir.run_dir(Path(config.root), config.name)
    code.keep(config)
    directory.mkdir(parents=True, exist_ok=True)
    disk.sweep(directory, Path(config.root) / "code")
    decides = _decides(config, directory)
    for planned in plan:
        if planned.wanted or planned.state == "done":
            disk.link(directory / planned.stage.name, planned.dir)
    store.write(_described(config, choices, directory, decides), directory)
    if decides:  # last, because a launch at the same moment takes the run for written by this file
        rundir.write_yaml(directory / CONFIG, config.model_dump(mode="json", exclude={"again"}))
    (directory / CANCELLED).unlink(missing_ok=True)
    return directory


def _decides(config: Config, directory: Path) -> bool:
    """Whether a configuration differs from the frozen one in a setting that decides results."""
    if not rundir.there(directory / CONFIG):
        return True
    return frozen(directory).model_dump(exclude=set(WHERE)) != config.model_dump(exclude=set(WHERE))


def _described(config: Config, choices: dict[str, str], directory: Path, decides: bool) -> Run:
    there = rundir.there(directory / RUN)
    known = store.read(Run, directory) if there else Run(choices=choices)
    copied = there and named.copied_from(directory)  # both would write one W&B run
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
        wandb=(None if copied else known.wandb) or {"id": wandb_id(directory)},
        job_ids=known.job_ids,
    )


def note_jobs(directory: Path, ids: dict[str, str]) -> None:
    """Add job ids, by stage, to `run.json`, without repeating any."""
    known = store.read(Run, directory)
    listed = {(stage, id) for row in known.job_ids for stage, id in row.items()}
    if new := {stage: id for stage, id in ids.items() if (stage, id) not in listed}:
        store.write(known.model_copy(update={"job_ids": [*known.job_ids, new]}), directory)


def wandb_id(directory: Path) -> str:
    """Return the W&B id of a run: derived from its directory, not from a job or an attempt.

    In a W&B sweep, the agent provides the id.
    """
    if by_agent():
        return os.environ["WANDB_RUN_ID"]
    return hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:12]


def by_agent() -> bool:
    """Whether an agent of a W&B sweep started this process."""
    return "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ


def write_question(planned: PlannedStage) -> None:
    """Write `stage.yaml`, the question of a stage directory, unless the stage has begun."""
    path = planned.dir / rundir.STAGE
    if (planned.dir / rundir.EVENTS).exists() and path.exists():
        return
    question = json.loads(json.dumps(planned.question.values()))  # lists instead of tuples
    parents = [path.parent.with_name(f"{n}-{f}") for n, f in planned.question.parents.items()]
    note = {repeats.NOTE: counts} if (counts := repeats.note(planned.dir, parents)) else {}
    content = {**question, **note}
    if not path.exists() or rundir.read_yaml(path) != content:
        rundir.write_yaml(path, content)


def write_where(planned: PlannedStage, config: Config) -> None:
    """Write `where.yaml`: the settings of the newest launch for running the stage."""
    where = config.model_dump(mode="json", include={"cluster", "checkpoint"})
    where["cluster"]["processes_per_node"] = config.cluster.processes(planned.stage.name)
    rundir.write_yaml(planned.dir / rundir.WHERE, where)
