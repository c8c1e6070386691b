"""Compose the runs of a command line: once per combination of choices, then set the values.

Hydra's own command composes each run of a sweep twice, and from the files. That takes minutes for
a thousand runs, and gives the same result.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

from pipeline.config import Config, flatten
from pipeline.config.idle import IDLE, idle
from pipeline.display.errors import UserError
from pipeline.display.outside import say
from pipeline.planning import search, unused
from pipeline.planning.arguments import CommandLine
from pipeline.planning.compose import Composed, by_hydra, choices_of, parse
from pipeline.planning.conf import CONF
from pipeline.planning.named_run import Settled, by_agent, settle
from pipeline.planning.settings_along import of_trial, settings_along
from pipeline.records import named, rundir

SWEEPER = ("hydra/sweeper", "hydra.sweeper.")  # what only a search uses
MOST = 10_000  # runs of a sweep, at most
SPACES = ("hydra.sweeper.params", "hydra.sweeper.search_space")

OmegaConf.register_new_resolver("absolute", lambda path: str(rundir.absolute(path)), replace=True)


@contextmanager
def composing(folder: str | None) -> Iterator[None]:
    """Have Hydra compose from `conf/`, and from a folder of the user's if one is given."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3", job_name="launch"):
        if folder:
            path = GlobalHydra.instance().config_loader().get_search_path()
            path.prepend("command-line", f"file://{folder}", anchor="schema")
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("launch", path)
        yield


def check(command: CommandLine) -> None:
    """Refuse a sweep or a search that cannot be run, before any run is composed.

    Raises:
        UserError: the message names the setting and the cure.
    """
    keys = [override.key_or_group for override in parse(command.settings)]
    if (of := [key for key in keys if key.startswith(SWEEPER)]) and not command.searches:
        raise UserError(f"{of[0]} is for a search: add -m hydra/sweeper=search, or leave it out")
    if not command.sweeps:
        return
    check_name(command.settings)
    if command.searches:
        search.check_sweeper(command.sweeper)
    if command.plain:
        check_varied(command.settings, command.searches, command.folder)


def check_varied(arguments: list[str], searching: bool, folder: str | None = None) -> None:
    """Refuse a setting that varies nothing, or has the same value twice.

    Raises:
        UserError: the message names the setting and the cure.
    """
    with composing(folder):
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        varied = [override for override in overrides if override.is_sweep_override()]
        counts = [_check_varied(override, searching) for override in varied]
    for one in varied:
        if others := [o.input_line for o in overrides if o is not one and _same(o, one)]:
            raise UserError(f"{one.input_line} and {others[0]} set the same; leave one")
    if math.prod(counts) > MOST:
        raise UserError(f"these are {math.prod(counts)} runs; sweep over at most {MOST}")
    if searching:
        _check_search(overrides)


def check_name(settings: list[str]) -> None:
    """Refuse one constant name for all runs of a sweep.

    Raises:
        UserError: the name does not depend on what varies.
    """
    overrides = parse(settings)
    varied = any(override.is_sweep_override() for override in overrides)
    fixed = [o for o in overrides if o.key_or_group == "name" and not o.is_sweep_override()]
    names = [str(override.value()) for override in fixed]
    if varied and names and "${" not in names[-1]:
        raise UserError(
            f"name={names[-1]} is one name for every run of a sweep; leave it out (names are made "
            "from what varies) and mark the sweep with group=NAME"
        )


def _same(one: Override, other: Override) -> bool:
    return one.key_or_group == other.key_or_group


def _check_varied(override: Override, searching: bool) -> int:
    """Return how many values a setting has; 1 if a search chooses them."""
    line = override.input_line
    if not override.is_discrete_sweep():
        _check_interval(override, searching)
        return 1
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MOST + 1))
    except ValidationError:  # of OmegaConf
        raise UserError(f"{line} has a choice within a choice; write all values in one") from None
    except ValueError as error:  # a range with a step of 0
        raise UserError(f"{line} cannot be gone through: {error}") from None
    if len(values) > MOST:
        raise UserError(f"{line} has more than {MOST} values; give fewer")
    if not values:
        raise UserError(f"{line} has no value, so there is nothing to run; give some")
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise UserError(f"{line} has {twice[0]} more than once; give each value once")
    return len(values)


def _check_interval(override: Override, searching: bool) -> None:
    line, interval = override.input_line, override.value()
    if not searching:
        raise UserError(f"{line} is for a search: add hydra/sweeper=search, or give the values")
    if not isinstance(interval, IntervalSweep):
        return
    start, end = interval.start, interval.end
    if start is None or end is None or not start < end:
        raise UserError(f"{line} holds nothing; give the smaller end first")
    if "log" in interval.tags and start <= 0:
        raise UserError(f"{line} has no logarithm at {start}; begin above 0")


def _check_search(overrides: list[Override]) -> None:
    for override in overrides:
        key, value = override.key_or_group, override.value()
        counts = key in ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs")
        if counts and not (isinstance(value, int) and value > 0):
            raise UserError(f"{override.input_line}: must be a whole number above 0")
    given = any(o.is_sweep_override() or o.key_or_group.startswith(SPACES) for o in overrides)
    if not given:
        raise UserError("a search needs something to vary, e.g. method=plain,dyrep")


def check_different(runs: list[Settled]) -> None:
    """Refuse a sweep that contains a run twice, before the first run begins.

    Raises:
        UserError: the message names both runs by their varied settings.
    """
    seen: dict[str, list[str]] = {}
    for config, _, overrides in runs:
        named = any(override.startswith("name=") for override in overrides)
        marks = [f"name {config.root} {config.name}"]
        marks += [] if named else [config.model_dump_json(exclude={"name"})]
        for mark in marks:
            if mark in seen:
                both = " and ".join(_apart(seen[mark], overrides))
                raise UserError(f"{both} are one run, '{config.name}'; ask for it once")
            seen[mark] = overrides


def _apart(one: list[str], other: list[str]) -> list[str]:
    """Return two lists of overrides as text, reduced to their differences if there are any."""
    both = set(one) & set(other)
    return [" ".join(o for o in words if o not in both) or "the same" for words in (one, other)]


def refuse_idle(runs: list[Composed]) -> None:
    """Refuse a setting that has no effect in any of the runs whose command line has it.

    Raises:
        UserError: the message names the setting and the reason.
    """
    refusals: dict[str, str] = {}
    used: set[str] = set()
    for tree, _, overrides in runs:
        named = {override.key_or_group for override in parse(overrides)} & IDLE.keys()
        values: Any = OmegaConf.to_container(tree, resolve=True) if named else {}
        found = idle(named, flatten(values))
        refusals |= found
        used |= named - found.keys()
    for key in refusals.keys() - used:
        raise UserError(refusals[key])


def single(arguments: list[str], folder: str | None = None) -> Composed:
    """Return tree, choices and overrides of a single run, as launched without `-m`.

    Raises:
        HydraException: as from Hydra's own command.
    """
    with composing(folder):
        return _one(arguments, folder)


def composed(arguments: list[str], folder: str | None = None) -> list[Composed]:
    """Return tree, choices and overrides of each run of a sweep.

    Raises:
        HydraException: as from Hydra's own command.
    """
    with composing(folder):
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        runs = BasicSweeper.split_arguments(overrides, None)[0]
        runs = settings_along(overrides, runs, folder)
        return [_one(each, folder) for each in runs]


def _one(overrides: list[str], folder: str | None) -> Composed:
    parsed = parse(overrides)
    values = [o for o in parsed if not (CONF / o.key_or_group).is_dir()]
    base, choices = _chosen(folder, *(o.input_line or "" for o in parsed if o not in values))
    for override in values:
        unused.check_shape(base, override)
    if any(o.is_add() or o.is_force_add() or o.is_delete() for o in values):
        return *_from_files(overrides), overrides
    tree = copy.deepcopy(base)
    try:
        for override in values:
            OmegaConf.update(tree, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException:
        _from_files(overrides)  # raises Hydra's own error
        raise
    return tree, dict(choices), overrides


@functools.cache
def _chosen(folder: str | None, *choices: str) -> tuple[DictConfig, dict[str, str]]:
    """Compose choices; the result is cached per combination and user's folder."""
    return _from_files(list(choices))


def _from_files(overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    tree = hydra.compose("config", overrides, return_hydra_config=True)
    choices = choices_of(tree.hydra)
    with open_dict(tree):
        del tree["hydra"]
    return tree, choices


def settled(command: CommandLine) -> list[tuple[Composed, Settled]]:
    """Return each run as asked for and as settled; a sweep is checked before its first run begins.

    Raises:
        UserError: a run cannot be settled, or two runs of the sweep are one.
    """
    trees = _composed(command)
    refuse_idle(trees)
    runs = [settle(*tree) for tree in trees]
    if command.sweeps:
        check_different(runs)
        _note_joined([config for config, *_ in runs])
    return list(zip(trees, runs, strict=True))


def _composed(command: CommandLine) -> list[Composed]:
    if command.plain and command.sweeps:
        return composed(command.settings, command.folder)
    if command.plain and not any("hydra" in word for word in command.settings):
        words = command.settings
        return [single(of_trial(words, command.folder) if by_agent() else words, command.folder)]
    found: list[Composed] = []
    by_hydra(found.append)
    return found


def _note_joined(configs: list[Config]) -> None:
    """Print a note if the group of a sweep has other runs, because comparisons include them."""
    names = {config.name for config in configs}
    for root, group in sorted({(config.root, config.group) for config in configs if config.group}):
        others = [run for run, its in named.groups(Path(root))[0].items() if its == group]
        if count := sum(run.name not in names for run in others):
            say(f"note: group '{group}' has {count} other run{'s' * (count != 1)}; these join it")
