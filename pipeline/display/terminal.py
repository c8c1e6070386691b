"""A console for tables that shows text without interpreting it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.display.outside import line


class Terminal(Console):
    """A console without markup, on which control characters in text are escapes, line ends too.

    Colours are given as `Text`; what is from outside goes into one by `bold`.

    Args:
        width: In columns, where the output is no terminal.
        stderr: Write there.
    """

    def __init__(self, width: int | None = None, stderr: bool = False) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, stderr=stderr)
        if width and not self.is_terminal:
            self.width = width

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(line(text), **options)


def bold(text: str) -> Text:
    """Return text for a title."""
    return Text(line(text), "bold")
