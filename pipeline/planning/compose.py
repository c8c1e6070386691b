"""Turn Hydra's composed tree into a checked `Config`.

Hydra refuses a misspelt key or choice; the schema refuses every other mistake. Both become a
`UserError` that names the key, the problem and the nearest valid name (see `explain`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import ValidationError

from pipeline.config import WHERE, Config, flatten, rules, sense
from pipeline.config.base import Values
from pipeline.config.data import HOLDS
from pipeline.custom import code
from pipeline.display.errors import DONE, UserError
from pipeline.display.masking import TELLING, mask, mask_yaml
from pipeline.display.outside import visible
from pipeline.planning import meanings, starts, unused
from pipeline.planning.conf import CONF
from pipeline.planning.explain import _keys, explain_schema
from pipeline.records import rundir

Composed = tuple[DictConfig, dict[str, str], list[str]]  # settings, choices, overrides

OF_ENVIRONMENT = re.compile(r"(?<!\\)\$\{oc\.env:\s*['\"]?(\w+)")
WHAT = {starts.STRUCTURE: "RUN, one of the same network that has grown"}


def parse(overrides: list[str]) -> list[Override]:
    """Parse command-line overrides."""
    return OverridesParser.create().parse_overrides(overrides)


def by_hydra(each: Callable[[Composed], float | None]) -> None:
    """Have Hydra read the command line: call `each` for every run, or print what was requested."""

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def once(tree: DictConfig) -> float | None:
        here = HydraConfig.get()
        overrides = OmegaConf.to_container(here.overrides.task)  # ${…} stays as written
        assert isinstance(overrides, list)
        return each((tree, choices_of(here), overrides))

    once()


def choices_of(composition: Any) -> dict[str, str]:
    """Return the choices behind a composed tree, by group, from Hydra's record of them."""
    made = composition.runtime.choices
    return {group: choice for group, choice in made.items() if not group.startswith("hydra/")}


def to_config(tree: DictConfig, choices: dict[str, str], overrides: list[str]) -> Config:
    """Resolve and check a composed tree; see `values` and `finish`."""
    return finish(values(tree, choices, overrides))


def values(tree: DictConfig, choices: dict[str, str], overrides: list[str]) -> Values:
    """Return the settings of a composed tree; derive a missing run name from the choices."""
    _refuse_named_secrets(tree)
    settings: Any = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(settings, dict)
    _leave_out(settings, choices, {override.key_or_group for override in parse(overrides)})
    if "model.name" in {override.key_or_group for override in parse(overrides)}:
        model = settings["model"]
        unused.check_network(choices["model"], model.get("family"), model["name"])
    refuse_two_lengths(overrides, settings)
    refuse_another_optimizers(overrides, settings)
    if settings.get("name") is None:
        settings["name"] = derived_name(choices, settings.get("seed"), overrides)
    _settle_paths(settings)
    starts.pin(settings)
    return {str(key): value for key, value in settings.items()}


def _refuse_named_secrets(tree: DictConfig) -> None:
    """Refuse the value of an environment variable that is secret by its name: it would be kept.

    Nothing in the value itself may show that, so it would be masked nowhere.
    """
    written: Any = OmegaConf.to_container(tree, resolve=False)
    for key, value in flatten(written).items():
        for name in OF_ENVIRONMENT.findall(str(value)):
            if TELLING.search(name):
                raise UserError(
                    f"{key} takes in the value of {name}, which looks like a secret and would be "
                    "kept below root; leave it out, and read the variable where it is needed"
                )


def _leave_out(values: Values, choices: dict[str, str], named: set[str]) -> None:
    """Remove the settings of an experiment that the chosen choice of a section does not have.

    So an experiment can say when methods grow, and still run with a method that does not grow. A
    setting from the command line stays, and so does one that no choice has; both are refused later.
    """
    for section, settings in values.items():
        if not isinstance(settings, dict):
            continue
        choice = str(choices.get(section, settings.get("name")))
        if not (CONF / section / f"{choice}.yaml").is_file():
            continue  # the choice is not in `conf/`: its settings are unknown
        for key in (has(section) - has(section, choice)) & settings.keys():
            if f"{section}.{key}" not in named:
                del settings[key]


@cache
def has(section: str, choice: str = "*", folder: str | None = None) -> frozenset[str]:
    """Return the settings that a choice of a section has; by default, those of all its choices.

    The result is empty for a choice in another place, or one built on others by `defaults`.

    Args:
        section: the name of a folder of `conf/`.
        choice: the name of a file in that folder, without `.yaml`.
        folder: the user's folder of further choices (`--config-dir`).
    """
    folders = [CONF, *([Path(folder)] if folder else [])]
    files = (file for each in folders for file in (each / section).glob(f"{choice}.yaml"))
    found = [_keys(file, section) for file in files]
    return frozenset().union(*(keys for keys in found if "defaults" not in keys))


def refuse_two_lengths(overrides: list[str], values: Values) -> None:
    """Refuse `train.epochs` beside a budget, because the budget decides the number of epochs."""
    budget = flatten(values).get("train.budget.plain_epochs")
    if budget is not None and "train.epochs" in {o.key_or_group for o in parse(overrides)}:
        raise UserError(
            f"train.epochs and train.budget.plain_epochs={budget:g} both say how long to train; "
            "leave train.epochs out, or set train.budget.plain_epochs=null"
        )


def refuse_another_optimizers(overrides: list[str], values: Values) -> None:
    """Refuse sgd's settings with another optimizer, and a changed optimizer without `train.lr`."""
    train, named = values.get("train"), {o.key_or_group for o in parse(overrides)}
    name = train.get("optimizer") if isinstance(train, dict) else None
    if not isinstance(train, dict) or not isinstance(name, str) or name in ("sgd", ""):
        return
    for key in ("momentum", "nesterov"):
        if f"train.{key}" in named:
            raise UserError(
                f"train.{key} is a setting of train.optimizer=sgd; if {name} takes it, write "
                f"train.optimizer_args={{{key}:VALUE}}"
            )
    if "train.optimizer" in named and "train.lr" not in named:
        raise UserError(
            f"train.lr={train.get('lr')} is meant for another optimizer than {name}; give train.lr "
            "beside train.optimizer"
        )


def finish(values: Values) -> Config:
    """Derive the settings that nobody set by rule, and check all settings.

    Raises:
        UserError: a value does not fit the schema, makes no sense, or is required and missing.
    """
    for key, value in sorted(flatten(values).items()):
        if value == MISSING:
            raise UserError(_missing(key, values))
    settled = rules.settle(values)
    if flatten(settled).get("data.root", "") is None and settled["data"].get("name") in HOLDS:
        raise UserError(_missing("data.root", settled))
    config = validated(code.pin(settled))
    if found := sense.wrong(flatten(config.model_dump())):
        raise UserError(found)
    return config


def _missing(key: str, values: Values) -> str:
    value = WHAT.get(key, "VALUE")
    if key == "data.root" and (holds := HOLDS.get(values["data"]["name"])):
        value = f"FOLDER, {holds}"
    elif key.endswith(".target"):
        value = "package.module:function, see docs/own.md"
    elif key == "model.name":
        value += "; python -m pipeline.launch --models lists them"
    return f"{key} is missing; give {key}={value}"


def _settle_paths(values: Values) -> None:
    """Make the paths absolute, because stages run in another directory and on other machines."""
    for section in (values, values.get("data")):
        path = section.get("root") if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(path, str) and path not in ("", MISSING):
            section["root"] = str(rundir.absolute(path))


def validated(values: Values) -> Config:
    """Return `values` as a `Config`.

    Raises:
        UserError: a value does not fit; the message names the first such key and the cure.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(explain_schema(error.errors()[0])) from None


def derived_name(choices: dict[str, str], seed: Any, overrides: list[str]) -> str:
    """Name a run after its choices and overrides, so that different settings get other names."""
    words = [choices[group] for group in ("data", "model", "method")]
    if choices.get("experiment"):
        words.insert(0, choices["experiment"].replace("/", "-"))
    if choices["train"] != choices["data"]:
        words.append(choices["train"])
    words = [piece for word in [*words, f"s{seed}"] if (piece := _piece(word))]
    for override in parse(overrides):
        key = override.key_or_group
        if key in choices or key == "seed" or key.split(".")[0] in WHERE:
            continue
        value = mask(override.input_line or "").split("=", 1)[-1]
        words.append(_piece(f"{key.split('.')[-1]}_{value}"))
    name = "-".join(words).lstrip("._+-")
    if len(name) > 120:
        name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _piece(text: str) -> str:
    """Return a text as a part of a run's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_")


def show() -> int:
    """Have Hydra print what was requested, e.g. by `--help` or `--cfg job`, with secrets masked."""
    printed = StringIO()
    meanings.register()
    try:
        with redirect_stdout(printed):
            by_hydra(lambda _: None)
    finally:
        print(visible(mask_yaml(printed.getvalue())), end="")
    return DONE
