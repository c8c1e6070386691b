"""Turn errors of Hydra and of the schema into one line with the nearest valid name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from pydantic_core import ErrorDetails
from yaml import MarkedYAMLError, YAMLError

from pipeline.config import Config, tags
from pipeline.config.base import written
from pipeline.display.errors import UserError, nearest
from pipeline.planning.conf import CONF

INTERPOLATION = (InterpolationResolutionError, GrammarParseError)
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError)
KINDS = {  # pydantic's name of a type, and the name that a message uses
    "a valid integer, got a number with a fractional part": "a whole number",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text, in quotes if it looks like something else",
    " after validation": "",
}
TYPED = ("int_type", "float_type", "bool_type")  # pydantic's errors about a number or a boolean
TYPED_TEXT = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e-?[0-9]+)?|true|false"
FREE = ("cluster.sbatch", "data.args", "model.args", "train.optimizer_args")  # may hold any key
TAGS = tags()  # pydantic puts these tags into keys, where they do not belong


def explain_schema(error: ErrorDetails) -> str:
    """Return an error of the schema as one line that names the key and the cure."""
    path = [str(name) for name in error["loc"] if str(name) not in TAGS]
    key, value = ".".join(path), written(error["input"])
    value = value if value.isprintable() else ascii(value)
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return unknown(key)
    if error["type"] == "missing":
        return f"{key} is missing; give {key}=VALUE"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and message.startswith(f"{key}."):
        return message
    if error["type"] == "value_error" and key.count(".") == 0 and re.match(r"\w+=", message):
        return f"{key}.{message}" if key else message
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    if error["type"] in ("model_type", "dict_type"):
        return f"{key}={value} is not a section; set what is in it, {key}.KEY=VALUE"
    if error["type"] == "list_type":
        cure = "leave it out, or give a list" if value == "null" else f"write [{value}]"
        return f"{key}={value} is not a list; {cure} in its place"
    if error["type"] == "string_too_short":
        key = re.sub(r"\.\d+$", "", key)  # of an entry, which no command line can name
        return f"{key}= is empty; give {key}=VALUE or leave it out"
    given = error["input"]
    if error["type"] in TYPED and isinstance(given, str) and re.fullmatch(TYPED_TEXT, given):
        return (
            f'{key}="{value}" is a text, as all in quotes and what ${{oc.env:…}} yields; leave the '
            "quotes out, or write ${oc.decode:${oc.env:…}}"
        )
    if error["type"] == "string_type" and isinstance(error["input"], dict | list):
        what = "a list" if isinstance(error["input"], list) else "several settings"
        quoted = QuotedString(value, Quote.double).with_quotes()
        text = shlex.quote(f"{key}={quoted}")
        return f"{key}={value} is {what}, where a text belongs; for a text, write {text}"
    message = message.replace("Input should be", "must be").replace("List should", "must")
    for name, words in KINDS.items():
        message = message.replace(name, words)
    return f"{key}={value} {message}{_whole(error['input']) if 'whole' in message else ''}"


def _whole(value: object) -> str:
    """Return a hint how to write a whole number that was written otherwise, as 1e3 or 007."""
    whole = isinstance(value, float) and value.is_integer()
    digits = isinstance(value, str) and value.isdecimal()  # also those of other scripts
    return f"; write {int(value)}" if whole or digits else ""  # type: ignore[call-overload]


def unknown(key: str) -> str:
    """Return a message that a key does not exist, with the nearest valid key."""
    head, _, last = key.rpartition(".")
    if not head and (CONF / key).is_dir():
        return f"{key} is a choice and no section: begin its file with '# @package _global_'"
    if not head:
        return f"{key} is not a setting; {_within_a_section(key) or nearest(key, _top_level())}"
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


def _within_a_section(name: str) -> str:
    """Return a question that suggests the settings of this name in sections; "" without any."""
    sections = [s for s in _top_level() if any(name in _keys(file, s) for file in _files(s))]
    found = " or ".join(f"'{section}.{name}'" for section in sections)
    return f"did you mean {found}?" if found else ""


def _top_level() -> list[str]:
    others = ("hydra", "sweeps")  # `sweeps` is read by W&B, not by Hydra
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and path.name not in others}
    return sorted(folders | Config.model_fields.keys())


def _files(section: str) -> list[Path]:
    return sorted((CONF / section).glob("*.yaml")) or [CONF / "config.yaml"]


def _keys(file: Path, head: str) -> set[str]:
    """Return the keys that a file of `conf/` has below the dotted path `head`."""
    inside = head if file.parent == CONF else head.partition(".")[2]
    tree = OmegaConf.load(file)
    below = OmegaConf.select(tree, inside) if inside else tree
    return {str(key) for key in below} if isinstance(below, DictConfig) else set()


@contextmanager
def explained() -> Iterator[None]:
    """Convert errors that Hydra raises into a `UserError`."""
    try:
        yield
    except HYDRA_ERRORS as error:
        raise UserError(explain_hydra(error)) from None


def explain_hydra(error: Exception) -> str:
    """Return an error of Hydra about the command line as one line."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if not error.options:
            cure = f"; for {last} write '/{last}: {choice}'" if (last := _last(group)) else ""
            return f"{group}={choice} is not a choice: there is no folder {group} with any{cure}"
        return f"{group}={choice} is not a choice; {nearest(choice, list(error.options))}"
    if isinstance(error, MissingConfigException):
        file = re.match(r"In '(.+?)'", str(error))
        return (
            f"{file[1] + '.yaml' if file else 'defaults'} includes {error.missing_cfg_file}, which "
            "is not there; a choice of another folder is written '/FOLDER: CHOICE'"
        )
    if isinstance(error, YAMLError | UnicodeDecodeError):
        return _no_yaml(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form KEY=VALUE ({str(error).splitlines()[-2]})"
    if match := re.fullmatch(
        r"(\S+) appears more than once in the final defaults list", str(error)
    ):
        return f"{match[1]} is chosen twice; write '- override /{match[1]}: CHOICE' for the second"
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None)
    if isinstance(error, INTERPOLATION) or isinstance(error.__cause__, INTERPOLATION):
        return f"{key}: {_line(error)}; for a $ that means no more, write \\$"
    if key and key.startswith("hydra."):
        return _not_of_hydra(key, error)
    return unknown(key) if key else _line(error)


def _last(group: str) -> str | None:
    """Return the last part of the path of a group if that part alone is a group of `conf/`."""
    above, _, last = group.rpartition("/")
    return last if above and (CONF / last).is_dir() else None


def _no_yaml(error: YAMLError | UnicodeDecodeError) -> str:
    """Return the file and place of a YAML error; Hydra does not say which file it is in."""
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        file = mark.name.strip("<>")
        return f"{file}, line {mark.line + 1}: {error.problem}; fix this file of settings"
    return f"a file of --config-dir is not YAML ({_line(error)}); write it in UTF-8"


def _not_of_hydra(key: str, error: BaseException) -> str:
    """Return a message that Hydra has no such setting, with the nearest valid one."""
    while (section := getattr(error, "parent_node", None)) is None and error.__cause__:
        error = error.__cause__
    head, _, last = key.rpartition(".")
    if not isinstance(section, DictConfig):
        return f"{key} is not a setting"
    valid = sorted(name for name in map(str, section) if not name.startswith("_"))
    return f"{key} is not a setting; {nearest(last, valid, f'{head}.')}"


def _line(error: Exception) -> str:
    """Return the message of an error without OmegaConf's context, as one line."""
    text = getattr(error, "msg", None) or str(error)
    text = re.sub(r"\w+ raised while composing config:\s*", "", text.partition("full_key:")[0])
    text = text.replace("Cannot merge DictConfig with ListConfig", "a list is where a section goes")
    return " ".join(text.split())
