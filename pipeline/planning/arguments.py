"""Translate command-line arguments for Hydra, and refuse those that Hydra would misread.

In Hydra's grammar `~`, `=`, `#` and values like `1e3` have a special meaning. This module quotes a
value that Hydra cannot parse, and keeps a number given for a text setting a text. Afterwards the
schema checks all values.
"""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NoReturn, get_args, get_origin

from hydra.core.override_parser.types import (
    ChoiceSweep,
    Override,
    OverrideType,
    Quote,
    QuotedString,
)
from hydra.errors import OverrideParseException
from pydantic import BaseModel

from pipeline.config import Config
from pipeline.display.errors import UserError, nearest
from pipeline.planning import folder, options, unused
from pipeline.planning.compose import parse
from pipeline.planning.conf import CONF
from pipeline.planning.explain import FREE, unknown
from pipeline.records import rundir

MOST_DIGITS = 1000  # Python reads 4,300
DEEPEST = 50  # Hydra's parser calls itself for each bracket
LONGEST_KEY = 60  # characters of a key that a message shows
SWEEPER = "hydra/sweeper="
KNOWN = ("overrides", "multirun", "config_dir")  # options of Hydra that compose runs
LIBRARIES = (
    " Networks of timm and torchvision: model=timm model.name={}; "
    "python -m pipeline.launch --models lists them"
)


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A parsed command line.

    Args:
        words: all arguments, as Hydra parses them.
        settings: the arguments that set or choose something.
        sweeps: whether each combination of values becomes a run.
        shows: whether Hydra only prints something, and nothing runs.
        folder: the user's folder of further choices, beside those of `conf/` (`--config-dir`).
        plain: whether no other option of Hydra was given.
    """

    words: list[str]
    settings: list[str]
    sweeps: bool
    shows: bool
    folder: str | None
    plain: bool

    @property
    def sweeper(self) -> str:
        """The name of the Hydra sweeper, which proposes settings; `basic` if none was chosen."""
        chosen = [word for word in self.settings if word.startswith(SWEEPER)]
        return chosen[-1].removeprefix(SWEEPER) if chosen else "basic"

    @property
    def searches(self) -> bool:
        """Whether the next run depends on the results of the runs before."""
        return self.sweeps and self.sweeper != "basic"


def read(arguments: list[str]) -> CommandLine:
    """Parse the arguments.

    Raises:
        UserError: an argument is not KEY=VALUE, names a choice that does not exist, or is an
            option that makes no sense for a launch.
    """
    for word in arguments:
        _check_text(word)
    known = options.parsed(arguments)
    given = set(known.overrides)
    others = [word for word in arguments if word not in given]
    arguments = others + known.overrides  # Hydra accepts settings on one side of an option only
    words = _readable(arguments, known)
    return CommandLine(
        words=words,
        settings=[spelt for word, spelt in zip(arguments, words, strict=True) if word in given],
        sweeps=known.multirun,
        shows=bool(known.help or known.hydra_help or known.cfg or known.info),
        folder=options.folder_of(known),
        plain=not any(value for key, value in vars(known).items() if key not in KNOWN),
    )


def _check_text(word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes that Python could not read
        raise UserError(
            f"{word} is not UTF-8; rename what it names, or set a locale like LC_ALL=C.UTF-8"
        ) from None
    key = word.partition("=")[0][:LONGEST_KEY]
    if re.search(rf"[0-9]{{{MOST_DIGITS + 1}}}", word):
        raise UserError(f"{key}: a number has more than {MOST_DIGITS:,} digits; use fewer")
    signs = ((sign in "[{(") - (sign in "]})") for sign in word)
    if max(accumulate(signs, initial=0)) > DEEPEST:
        raise UserError(f"{key}: brackets are nested more than {DEEPEST} deep; use fewer")


def _readable(arguments: list[str], known: Namespace) -> list[str]:
    """Return the arguments in a form that Hydra parses as intended."""
    settings = set(known.overrides)
    own = options.folder_of(known)
    spelt = [_spelt(word, known.multirun) if word in settings else word for word in arguments]
    for word, spelling in zip(arguments, spelt, strict=True):
        if word in settings:
            _check_choice(parse([spelling])[0], own)
    return spelt


def _spelt(word: str, sweeping: bool) -> str:
    """Return one argument in a form that Hydra parses as intended."""
    key, equals, value = word.partition("=")
    if not key or not (equals or key.startswith("~")) or not _parsed(f"{key}=1"):
        raise UserError(f"'{word}' is not of the form KEY=VALUE")
    override = _parsed(word)
    if override is None:
        return _mended(key, value, sweeping)
    if override.is_sweep_override():
        if not sweeping:
            _refuse_sweep(key, value)
        return word
    if override.is_delete() or not _takes_text(override.key_or_group):
        return word
    if isinstance(override.value(), dict | list) and key not in ("name", "group"):
        return word  # refused later, with the spelling of it as a text
    return word if isinstance(override.value(), str | None) else f"{key}={_quoted(value)}"


def _mended(key: str, value: str, sweeping: bool) -> str:
    """Return a value that Hydra cannot parse as quoted text; a list must be quoted by the user."""
    takes = _takes(key)
    if sweeping and re.fullmatch(r"\w+\(.*\)", value):
        raise UserError(f"{key}={value} cannot be read: {_why_not(key, value)}")
    if value.startswith("[") and value.endswith("]") and str not in takes:
        spelling = f"[{_items(value[1:-1])}]"
    elif sweeping and "," in value:
        spelling = _items(value)
    elif _parsed(f"{key}={_quoted(value)}"):
        return f"{key}={_quoted(value)}"
    else:
        raise UserError(f"{key}={value!r} has a sign in it that no setting can have; leave it out")
    if _parsed(f"{key}={spelling}") is None:
        raise UserError(f"{key}={value} cannot be read: put what has signs in it in quotes")
    raise UserError(f"{key}={value} cannot be read; write {shlex.quote(f'{key}={spelling}')}")


def _why_not(key: str, value: str) -> str:
    """Return Hydra's reason why a call of one of its functions cannot be parsed."""
    try:
        parse([f"{key}={value}"])
    except OverrideParseException as error:
        reason = str(error.__cause__ or error.__context__ or error)
        return reason.strip().replace("\n", "; ")
    return ""


def _items(values: str) -> str:
    """Return comma-separated values, each quoted if Hydra cannot parse it otherwise."""
    items = [item.strip() for item in values.split(",")]
    return ",".join(item if _parsed(f"x={item}") else _quoted(item) for item in items)


def _parsed(word: str) -> Override | None:
    try:
        return parse([word])[0]
    except OverrideParseException:
        return None


def _quoted(value: str) -> str:
    return QuotedString(value, Quote.double).with_quotes()


def _refuse_sweep(key: str, value: str) -> NoReturn:
    cures = [f"for a run with each, -m {shlex.quote(f'{key}={value}')}"]
    if key == "stage":
        cures.append(f"for these stages, stage.run=[{value}]")
    elif any(get_origin(kind) is list for kind in _takes(key)):
        cures.append(f"for all in one run, {shlex.quote(f'{key}=[{value}]')}")
    elif _takes_text(key) and key not in ("name", "group"):
        cures.append(f"for one text, {shlex.quote(f'{key}={_quoted(value)}')}")
    raise UserError(f"{key}={value} is more than one value; {'; '.join(cures)}")


def _takes_text(key: str) -> bool:
    """Whether a setting is a text, so that `007` and `1e3` must not become numbers."""
    kinds = _takes(key)
    return str in kinds and int not in kinds


def _takes(key: str) -> set[Any]:
    """Return the types that the schema allows for a dotted key, over all choices of its section."""
    kinds: set[Any] = {Config}
    for name in key.lstrip("+~").split("."):
        owners = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        fields = [owner.model_fields[name] for owner in owners if name in owner.model_fields]
        kinds = {kind for field in fields for kind in _kinds(field.annotation)}
    return kinds


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types of an annotation: the members of a union, without their metadata."""
    if get_origin(annotation) in (list, dict) or not get_args(annotation):
        yield annotation
        return
    for one in get_args(annotation):
        yield from _kinds(one)


def _check_choice(override: Override, own: str | None) -> None:
    """Refuse an invalid choice: an argument chooses one file of a folder of `conf/` by name.

    Args:
        override: the argument.
        own: the user's folder of further choices; None without one.
    """
    group, line = override.key_or_group, override.input_line
    if group == "sweeps":
        files = rundir.shown(CONF / "sweeps" / "NAME.yaml")
        raise UserError(f"{line} is not for launch: `wandb sweep {files}` reads it")
    if group == "hydra.searchpath":
        raise UserError(f"{line} is not for launch; --config-dir DIR adds choices of yours")
    known = _takes(group) or (CONF / group).is_dir() or group.startswith(("hydra", *FREE))
    if override.is_delete() and not known:
        raise UserError(f"{line}: {unknown(group)}")
    unused.check(override, own)
    if not (CONF / group).is_dir() or group.startswith("hydra"):
        return
    valid = sorted(folder.choices(group, own))
    if override.is_delete() or override.package or override.value() is None:
        raise UserError(f"{line}: {group} needs a choice; valid are: {', '.join(valid)}")
    for choice in _chosen(override):
        if not isinstance(choice, str):
            raise UserError(f"{line}: {group} needs one choice; valid are: {', '.join(valid)}")
        if choice not in valid:
            raise UserError(
                f"{group}={choice} is not a choice; {nearest(choice, valid)}"
                + (LIBRARIES.format(choice) if group == "model" else "")
            )
        if own:
            folder.check_choice(group, choice, own)
    if override.type is not OverrideType.CHANGE:
        raise UserError(f"{line}: {group} is among the settings; write {group}={choice}")


def _chosen(override: Override) -> list[Any]:
    """Return the choices of a group that an override names; ranges and globs are left to Hydra."""
    if not override.is_sweep_override():
        return [override.value()]
    if isinstance(override.value(), ChoiceSweep):
        return [getattr(choice, "text", choice) for choice in override.sweep_iterator()]
    return []
