"""Escape text from outside, so that a terminal or a page shows it without interpreting it.

Names of files, classes, layers and runs, and messages of other programs, can contain terminal
control codes, characters that change the direction of reading, and Markdown or HTML. Templates
escape pages (`report.render`), and the console escapes tables in a terminal (`terminal`).
"""

from __future__ import annotations

import html
import re
from typing import TextIO

KEPT = "\n\t\xa0\u3000\u200c\u200d"  # spaces, and joiners of some scripts
SYNTAX = re.compile(r"[\\`*_\[\]|~$#]")


def visible(text: str) -> str:
    """Return text with control characters replaced by escapes; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c in KEPT or c.isprintable() else ascii(c)[1:-1] for c in text)


def line(text: str) -> str:
    """Return text as one line; see `visible`."""
    return visible(text.replace("\r\n", "\n")).replace("\n", "\\n").replace("\t", "\\t")


def say(text: str, file: TextIO | None = None) -> None:
    """Print a text as one line, and flush it at once."""
    print(line(text), file=file, flush=True)


def markdown(text: str) -> str:
    """Return text as one line of Markdown that shows it as it is."""
    return SYNTAX.sub(r"\\\g<0>", html.escape(line(text), quote=False))


def code(text: str) -> str:
    """Return text as code in Markdown; not for a table, where a bar would end its cell."""
    text = line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if "`" in text else ""
    return f"{fence}{blank}{text}{blank}{fence}"
