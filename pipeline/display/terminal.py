"""Define a console for tables that shows text without interpreting it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.display.outside import line


class Terminal(Console):
    """A console without markup that shows control characters in text, even line ends, as escapes.

    Colours are given as `Text`; `bold` makes such a `Text` of a string from outside.

    Args:
        width: columns to use if the output is not a terminal.
        stderr: whether to write to stderr instead of stdout.
    """

    def __init__(self, width: int | None = None, stderr: bool = False) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, stderr=stderr)
        if width and not self.is_terminal:
            self.width = width

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(line(text), **options)


def bold(text: str) -> Text:
    """Return a string as bold text, for a title."""
    return Text(line(text), "bold")
