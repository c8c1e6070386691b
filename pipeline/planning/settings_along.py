"""Let a sweep over the choices of a section set what only some of these choices have.

The sweep may be a grid of Hydra, whose runs are all known at once; a search, for which Optuna
proposes one run after the other; or a sweep of W&B, of which a launch sees a single run.
"""

from __future__ import annotations

from hydra.core.override_parser.types import Override
from omegaconf import open_dict

from pipeline.display.outside import say
from pipeline.planning.compose import Composed, has, parse
from pipeline.planning.conf import CONF
from pipeline.planning.folder import choices

ADD = "++"  # makes Hydra add a setting that does not exist
Known = dict[str, dict[str, frozenset[str]]]  # the settings that exist, by group and choice


def settings_along(
    overrides: list[Override], runs: list[list[str]], folder: str | None = None
) -> list[list[str]]:
    """Remove from each run the settings that only other choices of the sweep have.

    So `method=plain,dyrep method.adjust_interval=5` is a sweep of two runs, and a setting that
    varies makes no second run of a choice that does not have it. A note is printed for each removed
    setting.

    Args:
        overrides: the overrides of the sweep.
        runs: the overrides of each of its runs.
        folder: the user's folder of further choices (`--config-dir`).
    """
    varied = {
        override.key_or_group
        for override in overrides
        if override.is_sweep_override() and (CONF / override.key_or_group).is_dir()
    }
    settings = (o.key_or_group for o in overrides if "." in o.key_or_group)
    if not any(key.partition(".")[0] in varied for key in settings):
        return runs
    known = {
        group: {choice: has(group, choice, folder) for choice in {_choice(r, group) for r in runs}}
        for group in varied
    }
    return _without(runs, known)


def of_trial(run: list[str], folder: str | None = None) -> list[str]:
    """Remove from a run of a W&B sweep the settings that only other choices have; print a note."""
    groups = {o.key_or_group for o in parse(run) if (CONF / o.key_or_group).is_dir()}
    known = {group: {c: has(group, c, folder) for c in choices(group, folder)} for group in groups}
    return _without([run], known)[0]


def addable(words: list[str], folder: str | None = None) -> list[str]:
    """Mark the settings that only some choices of the search have, so that Hydra adds them."""
    overrides = parse(words)
    known = {
        group: frozenset().union(*(has(group, c, folder) for c in override.sweep_string_iterator()))
        for override in overrides
        if override.is_choice_sweep() and (CONF / (group := override.key_or_group)).is_dir()
    }
    marked = []
    for word, override in zip(words, overrides, strict=True):
        section, _, key = override.key_or_group.partition(".")
        added = key.partition(".")[0] in known.get(section, ())
        marked.append(f"{ADD}{word}" if added and not word.startswith(("+", "~")) else word)
    return marked


def of_proposal(run: Composed, folder: str | None = None) -> Composed:
    """Remove from a proposal the settings of other choices, which `addable` let Hydra add."""
    tree, made, overrides = run
    words = [word.removeprefix(ADD) for word in overrides]
    left = of_trial(words, folder)
    with open_dict(tree):
        for override in parse([word for word in words if word not in left]):
            section, _, key = override.key_or_group.partition(".")
            tree[section].pop(key.partition(".")[0], None)
    return tree, made, left


def _without(runs: list[list[str]], known: Known) -> list[list[str]]:
    """Return the runs without settings foreign to their choices, and each once; print notes."""
    foreign = [_foreign(run, known) for run in runs]
    for word, group, choice in sorted(set().union(*foreign)):
        say(f"note: {word} is not a setting of {group}={choice}, whose runs go without it")
    left = []
    for run, out in zip(runs, foreign, strict=True):
        words = {word for word, *_ in out}
        left.append(tuple(word for word in run if word not in words))
    return [list(run) for run in dict.fromkeys(left)]


def _foreign(run: list[str], known: Known) -> set[tuple[str, str, str]]:
    """Return the overrides of a run that its choice lacks and another has, with group and choice.

    Nothing is known of a choice without settings in `known`, so it may have every setting.
    """
    found = set()
    for override in parse(run):
        group, _, key = override.key_or_group.partition(".")
        if not key or group not in known:
            continue
        choice, setting = _choice(run, group), key.partition(".")[0]
        own, others = known[group][choice], known[group].values()
        if own and setting not in own and any(setting in its for its in others):
            found.add((override.input_line or "", group, choice))
    return found


def _choice(run: list[str], group: str) -> str:
    return next((str(o.value()) for o in reversed(parse(run)) if o.key_or_group == group), "")
