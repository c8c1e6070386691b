"""Plan the stages of a configuration: their directories, what to do with each, and why.

A question is everything that decides a stage's result: the sections that the stage reads, the
fingerprints of its parents, and its version. A fingerprint is the hash of a question. Equal
questions have the same directory, so runs share results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from pathlib import Path

from pipeline.config import Config, flatten, values_of
from pipeline.contract.stage import Stage
from pipeline.contract.table import STAGES
from pipeline.display.errors import UserError
from pipeline.display.masking import masked
from pipeline.planning.planned_stage import PlannedStage, State
from pipeline.records import disk, repeats, rundir, store
from pipeline.records.schemas import Event, Output, Question, Result


def make_plan(config: Config, repeated: Container[Path] = ()) -> list[PlannedStage]:
    """Return the plan: all five stages, each with the action that a launch takes.

    Args:
        config: the configuration of the run.
        repeated: stage directories that this launch has already repeated, for another run.

    Raises:
        UserError: a parent of a requested stage is neither finished nor will run, or `again`
            names a stage that was not requested.
    """
    _check_again(config)
    root = Path(config.root)
    plan: dict[str, PlannedStage] = {}
    for stage in STAGES.values():
        question = _question(stage, config, plan)
        directory = rundir.stage_dir(root, stage.name, question.fingerprint)
        state = _state(directory)
        again = stage.name in config.again and directory not in repeated
        unusable = _unusable(again, state, directory, [plan[name] for name in stage.parents])
        why = _why(state, directory, rundir.run_dir(root, config.name) / stage.name, question)
        plan[stage.name] = PlannedStage(
            stage=stage,
            question=question,
            dir=directory,
            state=state,
            wanted=stage.name in config.stage.run,
            why=_reason(why, unusable, again),
            unusable=unusable,
        )
    _check_parents(plan, config.name)
    return list(plan.values())


def _check_again(config: Config) -> None:
    run = config.stage.run
    if missing := [name for name in config.again if name not in run]:
        both = ",".join(_between({*run, *missing}))
        raise UserError(
            f"again=[{','.join(missing)}] is not among the stages of this launch "
            f"({', '.join(run)}); launch with stage=all, or stage.run=[{both}]"
        )


def _between(names: set[str]) -> list[str]:
    """Return stages and all stages between them, in order."""
    above = {name: _above(name) for name in STAGES}
    way = [name for name in STAGES if above[name] & names]
    return [n for n in STAGES if n in names or (n in way and any(n in above[x] for x in names))]


def _above(name: str) -> set[str]:
    """Return all stages that a stage depends on."""
    parents = STAGES[name].parents
    return {*parents}.union(*map(_above, parents))


def _unusable(again: bool, state: State, directory: Path, parents: list[PlannedStage]) -> str:
    """Return why the result of a stage must not be used; empty if it may."""
    if state == "new":
        return ""
    if again:
        return "asked for with again="
    for parent in parents:
        if parent.repeats:
            return f"its parent {parent.stage.name} is repeated"
    older = repeats.behind(directory, [parent.dir for parent in parents])
    return f"its parent {older} was repeated since" if older else ""


def _reason(why: str, unusable: str, again: bool) -> str:
    """Return the reason why a stage runs or not, and what happens to an existing result."""
    if unusable:
        return f"{unusable} ({why})"
    return f"{why}, so again= has nothing to repeat" if again else why


def _question(stage: Stage, config: Config, plan: dict[str, PlannedStage]) -> Question:
    values = values_of(config, stage.reads)
    question = Question(
        stage=stage.name,
        version=stage.version,
        config={name: values[name] for name in stage.reads},
        parents={name: plan[name].fingerprint for name in stage.parents},
        fingerprint="",
    )
    return question.model_copy(update={"fingerprint": _fingerprint(question, stage.ignores)})


def _fingerprint(question: Question, ignores: tuple[str, ...]) -> str:
    """Return the hash of a question, without the settings that the stage ignores."""
    kept = {
        name: {k: v for k, v in section.items() if f"{name}.{k}" not in ignores}
        if isinstance(section, dict)
        else section
        for name, section in question.config.items()
    }
    decisive = question.model_copy(update={"config": kept}).model_dump(
        include={"stage", "version", "config", "parents"}
    )
    text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _state(directory: Path) -> State:
    if rundir.there(directory / rundir.RESULT):
        return "done"
    return "unfinished" if rundir.there(directory / rundir.EVENTS) else "new"


def _why(state: State, directory: Path, link: Path, question: Question) -> str:
    if state == "done":
        result = store.read(Result, directory)
        return f"finished before ({directory.name}, {result.seconds:.0f} s)"
    if state == "unfinished":
        last = list(store.rows(Event, directory))[-1:]
        return f"begun before, last event: {last[0].event if last else 'none'}"
    if link.is_symlink() and link.resolve() != directory.resolve():
        return f"the result of this run is out of date: {_difference(link, question)}"
    return "not done before"


def _difference(link: Path, question: Question) -> str:
    """Name the differences between the question of a linked stage and the current one."""
    try:
        known = store.read(Question, link).values()
    except OSError:
        return f"{link.resolve().name} is gone"
    before, after = flatten(known), flatten(question.values())
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    changed = [key for key in keys if key.split(".")[0] not in ("fingerprint", repeats.NOTE)]
    old, new = masked(before), masked(after)
    return ", ".join(f"{k} {old.get(k)} → {new.get(k)}" for k in changed[:3]) or "unknown"


def _check_parents(plan: dict[str, PlannedStage], name: str) -> None:
    for planned in plan.values():
        if not planned.runs:
            continue
        parents = [plan[parent] for parent in planned.stage.parents]
        missing = [p for p in parents if not p.runs and (p.state != "done" or p.unusable)]
        if missing:
            both = ",".join(_enough(plan))
            needed = " and ".join(
                parent.stage.name + (f" again ({parent.unusable})" if parent.unusable else "")
                for parent in missing
            )
            raise UserError(
                f"stage={planned.stage.name} needs {needed}, not finished for run "
                f"'{name}': launch with stage=all, or stage.run=[{both}]"
            )


def _enough(plan: dict[str, PlannedStage]) -> list[str]:
    """Return the requested stages and the stages that they need, in order."""
    names: set[str] = set()
    for name, planned in reversed(plan.items()):
        needed = any(name in plan[child].stage.parents for child in names)
        if planned.wanted or (needed and (planned.state != "done" or planned.unusable)):
            names.add(name)
    return [name for name in plan if name in names]


def verify(plan: list[PlannedStage]) -> None:
    """Check that the outputs of finished stages are unchanged.

    Sizes are always compared, and contents if a file is newer than its result.

    Raises:
        UserError: a file is missing, truncated or edited; the message names it and the cure.
    """
    for planned in plan:
        if planned.state == "done" and not planned.unusable:
            verify_outputs(planned.dir)


def verify_outputs(directory: Path) -> None:
    """Check the outputs of one finished stage; see `verify`.

    Raises:
        UserError: an output is gone or was changed; the message names it and the cure.
    """
    finished = (directory / rundir.RESULT).stat().st_mtime
    for output in store.read(Result, directory).outputs.values():
        path = directory / output.path
        wrong = _damage(path, output, finished)
        if wrong:
            raise UserError(
                f"{path}: {wrong} since the stage finished; "
                f"`rm -r {directory}` and launch again to rebuild it"
            )


def _damage(path: Path, output: Output, finished: float) -> str | None:
    if not path.exists():
        return "is gone"
    if not path.is_file():
        return "is not a file"
    stat = path.stat()
    if stat.st_size != output.bytes:
        return f"has {stat.st_size} bytes instead of {output.bytes}, it was changed"
    if stat.st_mtime > finished and disk.sha256(path) != output.sha256:
        return "has other content, it was edited"
    return None
