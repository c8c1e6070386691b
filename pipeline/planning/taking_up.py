"""Merge a new launch into an existing run: which settings are decided, and which may still change.

A setting is decided once a stage that reads it has begun. No stage has used the other settings yet:
a launch that gives another value for one of them gets that value, and the settings that follow from
it by rule are derived again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from pydantic import ValidationError

from pipeline.config import WHERE, flatten, rules, sections
from pipeline.config.base import Values
from pipeline.contract.stage import Stage
from pipeline.contract.table import STAGES
from pipeline.custom import code
from pipeline.display.masking import masked
from pipeline.planning import starts
from pipeline.planning.compose import parse
from pipeline.records import rundir, store

Side = tuple[Values, dict[str, str]]  # settings and choices


def decided(run: Path) -> Callable[[str], bool]:
    """Return a function that tells whether a stage of the run has read a dotted key or section."""
    stages = [stage for stage in STAGES.values() if _has_read(run, stage)]

    def read(key: str) -> bool:
        section = key.split(".")[0]
        return any(section in s.reads and key not in s.ignores for s in stages)

    return read


def _has_read(run: Path, stage: Stage) -> bool:
    """Whether a stage has begun, or will begin when a parent that is running has ended.

    A stage that refused its input and saved nothing decides nothing: the cure may be a setting.
    """
    own = run / stage.name
    begun = _begun(own) and not _refused(own)
    return own.is_symlink() and (begun or any(at_work(run / parent) for parent in stage.parents))


def _refused(stage: Path) -> bool:
    last = store.events(stage)[-1:]
    saved = any((stage / name).exists() for name in (rundir.RESULT, "checkpoints"))
    return bool(last) and (last[0].event, last[0].kind) == ("failed", "input") and not saved


def _begun(stage: Path) -> bool:
    return any((stage / n).exists() for n in (rundir.RESULT, rundir.EVENTS, rundir.JOBS))


def at_work(stage: Path) -> bool:
    """Whether a stage was begun or queued, and has recorded no end."""
    if not _begun(stage) or (stage / rundir.RESULT).exists():
        return False
    last = store.events(stage)[-1:]
    return not (last and last[0].event in ("failed", "stopped"))


def as_read(overrides: list[str], old: Values, new: Values) -> Values:
    """Return the values of a launch, with the settings that it names as the schema reads them.

    The schema reads `model.freeze=a` as [a], and `train.budget=null` as no limit. What it refuses
    stays as it is written.
    """
    for key in _named(overrides):
        path = key.split(".")
        with suppress(KeyError, ValidationError):
            whole = sections(_put({path[0]: old[path[0]]}, path, new))
            new = _put(new, path, whole.model_dump(mode="json"))
    return new


def _value(flat: Values, key: str) -> Any:
    """Return the value of a dotted key; of a mapping, all that is below it."""
    below = {name: value for name, value in flat.items() if name.startswith(f"{key}.")}
    return flat.get(key, below or None)


def differences(
    overrides: list[str], before: Values, after: Values, read: Callable[[str], bool]
) -> list[str]:
    """Return a line for each choice or setting that is decided and that the launch would change."""
    changed = []
    for key in _named(overrides):
        section, _, last = key.rpartition(".")
        was, new = _value(before, key), _value(after, key)
        by_rule = (section, last, new) in rules.RULED
        if was != new and not by_rule and read("train" if key == "experiment" else key):
            changed.append(f"{key} is {masked(was, key)}, asked for {masked(new, key)}")
    return changed


def merged(overrides: list[str], old: Side, new: Side, read: Callable[[str], bool]) -> Side:
    """Return values and choices of a run, with those of this launch where nothing is decided.

    Another choice replaces its whole section; an experiment replaces all sections. The caller still
    has to derive settings by rule.
    """
    (old_values, known), (new_values, choices) = old, new
    values = rules.unsettle(old_values)
    chosen: dict[str, str] = {}
    for key in _named(overrides):
        if read(key):
            continue
        if key not in choices:
            values = _put(values, key.split("."), new_values)
            section = key.partition(".")[0]
            values = values if read(f"{section}.code") else code.loosened(values, section)
        elif choices[key] != known.get(key):
            groups = [key] if key in values else [g for g in choices if g in values]
            groups = [group for group in groups if group not in WHERE and not read(group)]
            values |= {group: new_values[group] for group in groups}
            chosen |= {group: choices[group] for group in [key, *groups]}
    return values, {**known, **chosen}


def touched(overrides: list[str]) -> set[str]:
    """Return the sections that a launch names."""
    return {override.key_or_group.split(".")[0] for override in parse(overrides)}


def _named(overrides: list[str]) -> Iterable[str]:
    """Yield the choices and settings that a launch names and that decide a result."""
    for override in parse(overrides):
        if override.key_or_group.split(".")[0] not in WHERE:
            yield from _leaves(override)


def _leaves(override: Override) -> list[str]:
    value = None if override.is_delete() else override.value()
    key = override.key_or_group
    named = list(flatten(value, f"{key}.")) if isinstance(value, dict) else [key]
    return [*named, *(starts.PINS[name] for name in named if name in starts.PINS)]


def _put(values: Values, path: list[str], source: Values) -> Values:
    """Return `values` with the value at `path` taken from `source`."""
    head, *rest = path
    below = _put(values.get(head) or {}, rest, source[head]) if rest else source[head]
    return {**values, head: below}
