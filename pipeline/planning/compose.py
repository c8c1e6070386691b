"""From Hydra's composed tree to a checked `Config`, and from its errors to one line.

Hydra stops a misspelt key or choice, the schema stops everything else; both end in a `UserError`
that names the key, what is wrong with it and the nearest valid name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import WHERE, Config, flatten, rules, sense, tags
from pipeline.config.base import Values
from pipeline.config.data import HOLDS
from pipeline.custom import code
from pipeline.display.masking import mask, mask_yaml
from pipeline.display.outside import visible
from pipeline.errors import DONE, UserError, nearest
from pipeline.planning import starts
from pipeline.records import rundir
from pipeline.records.provenance import PROJECT

Composed = tuple[DictConfig, dict[str, str], list[str]]  # settings, choices, overrides

INTERPOLATION = (InterpolationResolutionError, GrammarParseError)
HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
INSTALLED = PROJECT / "pipeline" / "conf"  # where a wheel puts it
CONF = INSTALLED if INSTALLED.is_dir() else PROJECT / "conf"
OmegaConf.register_new_resolver("conf", lambda: str(rundir.shown(CONF)), replace=True)
WHAT = {starts.STRUCTURE: "RUN, one of the same network that has grown"}
FREE = ("cluster.sbatch", "data.args", "model.args", "train.optimizer_args")  # may hold any key
TAGS = tags()  # not part of a key, though pydantic puts them there


def parse(overrides: list[str]) -> list[Override]:
    """Parse command-line overrides."""
    return OverridesParser.create().parse_overrides(overrides)


def by_hydra(each: Callable[[Composed], float | None]) -> None:
    """Have Hydra read the command line: do `each` of the runs it means, or show what it asks."""

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def once(tree: DictConfig) -> float | None:
        here = HydraConfig.get()
        overrides = OmegaConf.to_container(here.overrides.task)  # with ${…} as it is written
        assert isinstance(overrides, list)
        return each((tree, choices_of(here), overrides))

    once()


def choices_of(composition: Any) -> dict[str, str]:
    """Return the choices behind a composed tree, from what Hydra notes of it."""
    made = composition.runtime.choices
    return {group: choice for group, choice in made.items() if not group.startswith("hydra/")}


def to_config(tree: DictConfig, choices: dict[str, str], overrides: list[str]) -> Config:
    """Resolve and check a composed tree; see `values` and `finish`."""
    return finish(values(tree, choices, overrides))


def values(tree: DictConfig, choices: dict[str, str], overrides: list[str]) -> Values:
    """Return what a composed tree says; a missing name is made from the choices."""
    said: Any = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(said, dict)
    _leave_out(said, choices, {override.key_or_group for override in parse(overrides)})
    refuse_two_lengths(overrides, said)
    refuse_another_optimizers(overrides, said)
    if said.get("name") is None:
        said["name"] = derived_name(choices, said.get("seed"), overrides)
    _settle_paths(said)
    starts.pin(said)
    return {str(key): value for key, value in said.items()}


def _leave_out(said: Values, choices: dict[str, Any], named: set[str]) -> None:
    """Leave out what an experiment sets for other choices of a section than the one that is made.

    So it can say when methods grow, and be run with those that do not. What the command line names
    stays, to be refused, and so does what no choice of the section has.
    """
    for section, settings in said.items():
        if not isinstance(settings, dict):
            continue
        choice = str(choices.get(section, settings.get("name")))
        if not (CONF / section / f"{choice}.yaml").is_file():
            continue  # from elsewhere
        for key in (has(section) - has(section, choice)) & settings.keys():
            if f"{section}.{key}" not in named:
                del settings[key]


@cache
def has(section: str, choice: str = "*", folder: str | None = None) -> frozenset[str]:
    """Return the settings that a choice of a section has; by default, that any of them has.

    Nothing is known of a choice that is elsewhere, or builds on others by a list of defaults.

    Args:
        section: A folder of `conf/`.
        choice: The name of a file there.
        folder: Holds choices as well (`--config-dir`).
    """
    places = [CONF, *([Path(folder)] if folder else [])]
    files = (file for place in places for file in (place / section).glob(f"{choice}.yaml"))
    found = [_keys(file, section) for file in files]
    return frozenset().union(*(keys for keys in found if "defaults" not in keys))


def refuse_two_lengths(overrides: list[str], values: Values) -> None:
    """Refuse epochs that are asked for beside a budget, from which they follow."""
    budget = flatten(values).get("train.budget.plain_epochs")
    if budget is not None and "train.epochs" in {o.key_or_group for o in parse(overrides)}:
        raise UserError(
            f"train.epochs and train.budget.plain_epochs={budget:g} both say how long to train; "
            "leave train.epochs out, or set train.budget.plain_epochs=null"
        )


def refuse_another_optimizers(overrides: list[str], values: Values) -> None:
    """Refuse settings of sgd beside another optimizer, and the step size of the one before."""
    train, asked = values.get("train"), {o.key_or_group for o in parse(overrides)}
    if not isinstance(train, dict) or (name := train.get("optimizer", "sgd")) == "sgd":
        return
    for key in ("momentum", "nesterov"):
        if f"train.{key}" in asked:
            raise UserError(
                f"train.{key} is a setting of train.optimizer=sgd; if {name} takes it, write "
                f"train.optimizer_args={{{key}:VALUE}}"
            )
    if "train.optimizer" in asked and "train.lr" not in asked:
        raise UserError(
            f"train.lr={train.get('lr')} is meant for another optimizer than {name}; give train.lr "
            "beside train.optimizer"
        )


def finish(values: Values) -> Config:
    """Settle by rule what nobody set, and check everything.

    Raises:
        UserError: a value does not fit, cannot be meant, or is not given although it has to be.
    """
    for key, value in sorted(flatten(values).items()):
        if value == MISSING:
            raise UserError(_missing(key, values))
    settled = rules.settle(values)
    if flatten(settled).get("data.root", "") is None and settled["data"].get("name") in HOLDS:
        raise UserError(_missing("data.root", settled))
    config = check(code.settle(settled))
    if found := sense.wrong(flatten(config.model_dump())):
        raise UserError(found)
    return config


def _missing(key: str, values: Values) -> str:
    value = WHAT.get(key, "VALUE")
    if key == "data.root" and (holds := HOLDS.get(values["data"]["name"])):
        value = f"FOLDER, {holds}"
    elif key.endswith(".target"):
        value = "package.module:function, see docs/own.md"
    return f"{key} is missing; give {key}={value}"


def _settle_paths(values: Values) -> None:
    """Make the paths absolute: stages work in another directory, and on other machines."""
    for section in (values, values.get("data")):
        path = section.get("root") if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(path, str) and path not in ("", MISSING):
            section["root"] = str(rundir.absolute(path))


def check(values: Values) -> Config:
    """Return `values` as a `Config`.

    Raises:
        UserError: names the first offending key and the cure.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0])) from None


def derived_name(choices: dict[str, str], seed: Any, overrides: list[str]) -> str:
    """Name a run after its choices and whatever else was set, so that other settings differ."""
    parts = [str(choices[group]) for group in ("data", "model", "method")]
    if choices.get("experiment"):
        parts.insert(0, str(choices["experiment"]))
    if choices["train"] != choices["data"]:
        parts.append(str(choices["train"]))
    parts.append(f"s{seed}")
    for override in parse(overrides):
        key = override.key_or_group
        if key in choices or key == "seed" or key.split(".")[0] in WHERE:
            continue
        value = mask(override.input_line or "").split("=", 1)[-1]
        parts.append(re.sub(r"[^A-Za-z0-9._+-]+", "_", f"{key.split('.')[-1]}_{value}").strip("_"))
    name = "-".join(parts)
    if len(name) > 120:
        name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _explain(error: ErrorDetails) -> str:
    path = [str(part) for part in error["loc"] if str(part) not in TAGS]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return _unknown(key)
    if error["type"] == "missing":
        return f"{key} is missing; give {key}=VALUE"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    if error["type"] == "list_type":
        return f"{key}={error['input']} is no list; write [{error['input']}] in its place"
    return f"{key}={error['input']}: {message[0].lower()}{message[1:]}"


def _unknown(key: str) -> str:
    """Say that there is no such key, and which one may be meant."""
    head, _, last = key.rpartition(".")
    if not head and (CONF / key).is_dir():
        return f"{key} is a choice and no section: begin its file with '# @package _global_'"
    if not head:
        return f"{key} is not a setting; {nearest(last, _top_level())}"
    if head in FREE:
        return f"{key} is not among the settings yet; add it: +{key}=VALUE"
    section = head.split(".")[0]
    owners = [f.stem for f in _files(section) if f.parent != CONF and last in _keys(f, head)]
    if owners:
        return (
            f"{key} is only a setting of {section}={' or '.join(owners)}; choose that or leave it"
        )
    valid = sorted(set().union(*(_keys(f, head) for f in _files(section))))
    if valid:
        return f"{key} is not a setting; {nearest(last, valid, f'{head}.')}"
    return f"{key} is not a setting; {nearest(section, _top_level())}"


def _top_level() -> list[str]:
    others = ("hydra", "sweeps")  # the second is read by W&B
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and path.name not in others}
    return sorted(folders | Config.model_fields.keys())


def _files(section: str) -> list[Path]:
    return sorted((CONF / section).glob("*.yaml")) or [CONF / "config.yaml"]


def _keys(file: Path, head: str) -> set[str]:
    """Return the keys a file of `conf/` has below the dotted path `head`."""
    inside = head if file.parent == CONF else head.partition(".")[2]
    tree = OmegaConf.load(file)
    below = OmegaConf.select(tree, inside) if inside else tree
    return {str(key) for key in below} if isinstance(below, DictConfig) else set()


def show() -> int:
    """Have Hydra show what it is asked for; `--cfg job` prints what was given."""
    told = StringIO()
    try:
        with redirect_stdout(told):
            by_hydra(lambda _: None)
    finally:
        print(visible(mask_yaml(told.getvalue())), end="")
    return DONE


@contextmanager
def explained() -> Iterator[None]:
    """Have what Hydra refuses end as the bad input it is."""
    try:
        yield
    except HYDRA_ERRORS as error:
        raise UserError(explain_hydra(error)) from None


def explain_hydra(error: Exception) -> str:
    """Return Hydra's complaint about the command line as one line with the nearest valid name."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice} is not a choice; {nearest(choice, list(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form KEY=VALUE ({str(error).splitlines()[-2]})"
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None)
    if isinstance(error, INTERPOLATION) or isinstance(error.__cause__, INTERPOLATION):
        return f"{key}: {_line(error)}; for a $ that means no more, write \\$"
    if key and key.startswith("hydra."):
        return _not_of_hydra(key, error)
    return _unknown(key) if key else _line(error)


def _not_of_hydra(key: str, error: BaseException) -> str:
    """Say that there is no such setting of Hydra's, by what its section has."""
    while (section := getattr(error, "parent_node", None)) is None and error.__cause__:
        error = error.__cause__
    head, _, last = key.rpartition(".")
    if not isinstance(section, DictConfig):
        return f"{key} is not a setting"
    valid = sorted(name for name in map(str, section) if not name.startswith("_"))
    return f"{key} is not a setting; {nearest(last, valid, f'{head}.')}"


def _line(error: Exception) -> str:
    """Return what an error says without OmegaConf's further lines, as one line."""
    said = getattr(error, "msg", None) or str(error)
    return " ".join(said.partition("full_key:")[0].split())
