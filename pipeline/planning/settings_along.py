"""A sweep over the choices of a section takes along settings that only some of these have."""

from __future__ import annotations

from hydra.core.override_parser.types import Override

from pipeline.display.outside import say
from pipeline.planning.compose import has, parse
from pipeline.planning.conf import CONF


def settings_along(
    overrides: list[Override], runs: list[list[str]], folder: str | None = None
) -> list[list[str]]:
    """Leave out of each run what is a setting of other choices that the sweep goes through.

    So `method=plain,dyrep method.adjust_interval=5` is a sweep of two runs, and a setting that
    varies makes no second run of a choice that does not have it. What was left out is printed.

    Args:
        overrides: Those of the sweep.
        runs: What each of its runs is asked for.
        folder: With choices beside those of `conf/`.
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
    foreign = [_foreign(run, known) for run in runs]
    for word, group, choice in sorted(set().union(*foreign)):
        say(f"note: {word} is no setting of {group}={choice}, whose runs go without it")
    left = []
    for run, out in zip(runs, foreign, strict=True):
        words = {word for word, *_ in out}
        left.append(tuple(word for word in run if word not in words))
    return [list(run) for run in dict.fromkeys(left)]


def _foreign(
    run: list[str], known: dict[str, dict[str, frozenset[str]]]
) -> set[tuple[str, str, str]]:
    """Return overrides of a run that only other choices have, with the group and the choice.

    `known`: the settings of each choice, by group; a choice without any may have all.
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
