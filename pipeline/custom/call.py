"""Imports and calls a target; whatever goes wrong in the user's code ends in one line."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.config.base import Target
from pipeline.custom import files
from pipeline.display.errors import UserError, gist, nearest
from pipeline.records.provenance import PROJECT

PACKAGE = PROJECT / "pipeline"
THEIRS = (Exception, SystemExit, KeyboardInterrupt)  # what code of the user's may raise


def call(key: str, section: Target, **offered: Any) -> Any:
    """Return what a target returns.

    Args:
        key: the setting, for what is said.
        section: what is called, and with which arguments.
        offered: further arguments, each given if the target takes one of its name.

    Raises:
        UserError: it cannot be imported or called, or raises.
    """
    function = load(key, section)
    given = {name: value for name, value in offered.items() if takes(function, name)}
    given |= section.args or {}
    try:
        return function(**given)
    except THEIRS as error:
        words = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(f"{key}={section.target}, called with ({words}), {raised(error)}") from None


def load(key: str, section: Target) -> Callable[..., Any]:
    """Return what a target names.

    Raises:
        UserError: it cannot be imported, or cannot be called.
    """
    module, _, path = section.target.partition(":")
    try:
        found: Any = import_module(module)
    except THEIRS as error:
        raise UserError(
            f"{key}={section.target} cannot be imported: {raised(error)}{_copy(error)}"
        ) from None
    for name in path.split("."):
        if not hasattr(found, name):
            cure = _named(found, name)
            raise UserError(f"{key}={section.target}: {module} has no {name}; {cure}")
        found = getattr(found, name)
    if not callable(found):
        raise UserError(
            f"{key}={section.target} is of type {type(found).__name__}, no function or class; name "
            "returns it"
        )
    return found


def _named(holder: Any, name: str) -> str:
    """Return which function or class may be meant."""
    public = [known for known in dir(holder) if not known.startswith("_")]
    valid = [known for known in public if callable(getattr(holder, known, None))]
    return nearest(name, valid) if valid else "there is no function or class in it"


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes an argument of a name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return False
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(p.kind == p.VAR_KEYWORD or (p.name == name and p.kind in kinds) for p in parameters)


def raised(error: BaseException) -> str:
    """Say what an error was, and where in the user's code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _theirs(f.filename)]
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"raised {gist(error)}{where}"


def _theirs(name: str) -> bool:
    path = Path(name)
    return path.is_absolute() and not (path.is_relative_to(PACKAGE) or files.installed(path))


def _copy(error: BaseException) -> str:
    """Say how a module comes into the copy, if one was not found."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    return (
        "; install it, or put it where it is found at launch: the code runs as a copy, of modules "
        "that an import statement names"
    )
