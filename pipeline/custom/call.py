"""Import and call a target; an error in the user's code becomes a message of one line."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.config.base import Target
from pipeline.custom import files
from pipeline.display.errors import UserError, gist, nearest
from pipeline.records.provenance import PROJECT

PACKAGE = PROJECT / "pipeline"
THEIRS = (Exception, SystemExit, KeyboardInterrupt)  # what the user's code may raise


def call(key: str, section: Target, named: Mapping[str, Any] | None = None, **offered: Any) -> Any:
    """Call a target and return its result.

    Args:
        key: name of the setting, for messages.
        section: the target and its arguments.
        named: further arguments; each is passed if the target has a parameter of this name.
        offered: further arguments; each is passed if the target takes an argument of this name,
            which `**kwargs` does, too.

    Raises:
        UserError: the target cannot be imported or called, or raises.
    """
    function = load(key, section)
    given = {name: value for name, value in offered.items() if takes(function, name)}
    given |= {n: value for n, value in (named or {}).items() if takes(function, n, by_name=True)}
    given |= section.args or {}
    try:
        return function(**given)
    except THEIRS as error:
        words = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(f"{key}={section.target}, called with ({words}), {raised(error)}") from None


def load(key: str, section: Target) -> Callable[..., Any]:
    """Return the function or class of a target.

    Raises:
        UserError: the target cannot be imported, or is not callable.
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
            "one that returns it"
        )
    return found


def _named(holder: Any, name: str) -> str:
    """Return a cure that names similar functions and classes of the module."""
    public = [known for known in dir(holder) if not known.startswith("_")]
    valid = [known for known in public if callable(getattr(holder, known, None))]
    return nearest(name, valid) if valid else "there is no function or class in it"


def takes(function: Callable[..., Any], name: str, by_name: bool = False) -> bool:
    """Whether a function can be called with a keyword argument of this name.

    With `by_name`, only if it has a parameter of this name; `**kwargs` does not count.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function written in C
        return False
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    rest = any(p.kind == p.VAR_KEYWORD for p in parameters) and not by_name
    return rest or any(p.name == name and p.kind in kinds for p in parameters)


def raised(error: BaseException) -> str:
    """Return the message of an error, with the line of the user's code that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _theirs(f.filename)]
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"raised {gist(error)}{where}"


def _theirs(name: str) -> bool:
    path = Path(name)
    return path.is_absolute() and not (path.is_relative_to(PACKAGE) or files.installed(path))


def _copy(error: BaseException) -> str:
    """Return advice how to get a module into the copy, if the error is that it was not found."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    return (
        "; install it, or put it where the launch finds it: the code runs as a copy of the modules "
        "that import statements name"
    )
