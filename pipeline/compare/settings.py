"""Name groups of runs by the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import yaml

from pipeline.config.base import Flat, written
from pipeline.display.errors import nearest

T = TypeVar("T")
HASH = "_sha256"  # suffix of the key that holds a file's hash, beside the key of its path


def group_by(items: Iterable[T], key: Callable[[T], str]) -> list[list[T]]:
    """Group items by key, in their original order."""
    found: dict[str, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def identity(value: Any) -> str:
    """Return a text that is equal for equal settings, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, default=str)


def differing(trees: list[Flat]) -> list[str]:
    """Return the keys whose values differ; a missing key counts as a value."""
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return [key for key in keys if _differs(trees, key)]


def _differs(trees: list[Flat], key: str) -> bool:
    return len({identity(tree.get(key, "–")) for tree in trees}) > 1


def labels(trees: list[Flat], differ: list[str]) -> list[str]:
    """Name each group by the choices that differ, and by settings that differ within a choice.

    A setting is left out if the remaining ones tell the groups apart as well without it.
    """
    if len(trees) == 1:
        tree = trees[0]
        sections = ("data", "model", "method")
        return [" · ".join(str(tree.get(f"{section}.name")) for section in sections)]
    choices = [key for key in differ if key.endswith(".name")]
    within = [key for key in differ if key not in choices and _within_choice(trees, key, choices)]
    within = [k for k in within if not k.endswith(HASH) or k.removesuffix(HASH) not in within]
    kept = choices + within
    for key in reversed(within):
        fewer = [other for other in kept if other != key]
        if len(set(_named(trees, fewer))) == len(set(_named(trees, kept))):
            kept = fewer
    return _named(trees, kept)


def _named(trees: list[Flat], keys: list[str]) -> list[str]:
    """Return one line per tree: `key=value` for each of the keys that it has."""
    return [
        " ".join(f"{key.removesuffix('.name')}={written(tree[key])}" for key in keys if key in tree)
        for tree in trees
    ]


def _within_choice(trees: list[Flat], key: str, choices: list[str]) -> bool:
    """Whether a setting differs among groups that made the same choice for its section."""
    choice = f"{key.split('.')[0]}.name"
    alike = group_by(trees, lambda tree: identity(tree.get(choice) if choice in choices else ""))
    return any(_differs(some, key) for some in alike)


def fits(tree: Flat, key: str, value: str) -> bool:
    """Whether a setting, or a choice such as `method`, has the value a user wrote."""
    actual = tree.get(_full(tree, key), "–")
    try:
        meant = yaml.safe_load(value)
    except yaml.YAMLError:
        meant = value
    return written(actual) == value or bool(actual == meant)


def valid(trees: list[Flat], key: str, value: str) -> str:
    """Return suggestions for a setting that matches no group."""
    keys = {k for tree in trees for k in tree}
    names = sorted(keys | {k.removesuffix(".name") for k in keys if k.endswith(".name")})
    if key not in names:
        return f"{key} is not a setting of theirs; {nearest(key, names)}"
    values = {written(t[k]) for t in trees if (k := _full(t, key)) in t}
    return nearest(value, sorted(values), f"{key}=")


def _full(tree: Flat, key: str) -> str:
    return key if key in tree else f"{key}.name"
