"""Check names of classes: unusable names, and two spellings of one name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection
from pathlib import Path

from pipeline.display.errors import UserError

UNSEEN = {"Cf"}  # Unicode category of format characters, e.g. the zero-width space
UNPRINTABLE = {"Cc", "Zl", "Zp"}  # control characters and line separators


def check(names: Collection[str], where: Path, kind: str = "class folder") -> None:
    """Refuse names of classes that cannot be distinguished or encoded.

    Args:
        names: names of all classes; a name that comes twice stands for two classes.
        where: folder of the classes.
        kind: word for a class in messages.

    Raises:
        UserError: the message names the folder and the cure.
    """
    known: dict[str, str] = {}
    for name in sorted(names):
        _check_one(name, where, kind)
        if (same := spelling(name)) not in known:
            known[same] = name
        elif (other := known[same]) == name:
            raise UserError(f"two classes of {where} are called {name!a}; merge or rename one")
        else:
            raise UserError(
                f"classes {_both(other, name)} of {where} {_difference(other, name)}; "
                "merge or rename one"
            )


def check_known(names: set[str], first: set[str], where: Path, other: Path) -> None:
    """Refuse classes of a split that the first split lacks.

    Raises:
        UserError: the message names one of them, and the nearest class of the first split.
    """
    known = {spelling(name): name for name in first}
    for name in sorted(names - first):
        alike = known.get(spelling(name))
        if alike:
            raise UserError(f"class {name!a} of {where} is spelt {alike!a} in {other}; rename one")
        raise UserError(f"class '{name}' is in {where} but not in {other}; add or remove it")


def spelling(name: str) -> str:
    """Return a name without differences of case, Unicode form and invisible characters."""
    seen = "".join(c for c in name if unicodedata.category(c) not in UNSEEN)
    return " ".join(unicodedata.normalize("NFC", seen).casefold().split())


def _check_one(name: str, where: Path, kind: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{kind} {os.fsencode(name)!r} of {where} {_undecoded(name, where)}"
        ) from None
    if any(unicodedata.category(c) in UNPRINTABLE for c in name):
        raise UserError(
            f"{kind} {name!a} of {where} has a control character in its name; rename it"
        )


def _undecoded(name: str, where: Path) -> str:
    """Return why Python could not decode a name, and the cure."""
    try:
        os.fsencode(name).decode()
    except UnicodeDecodeError:
        return f"is not UTF-8; rename it, e.g. `convmv -r -f latin1 -t utf8 --notest {where}`"
    return "is UTF-8, which Python does not read here; unset PYTHONUTF8, or export LC_ALL=C.UTF-8"


def _difference(one: str, other: str) -> str:
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "are one name in two forms of Unicode (NFC and NFD)"
    if one.casefold() == other.casefold():
        return "differ only in case"
    return "differ only in case, spaces or invisible characters"


def _both(one: str, other: str) -> str:
    shown = ascii if not (one + other).isascii() else repr
    return f"{shown(one)} and {shown(other)}"
