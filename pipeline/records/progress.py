"""Show the progress of running stages: a bar on a terminal, occasional lines elsewhere.

A stage writes `progress.json` and this module reads it, so a local launch, a SLURM job and a
command on another machine all show the same.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.display.outside import say
from pipeline.display.terminal import Terminal
from pipeline.records import store

SECONDS_BETWEEN_LINES = 15.0


class Onlooker:
    """Shows the progress of stages, one after the other.

    Args:
        console: the console to draw on; it gets lines instead of a bar if it is not a terminal.
    """

    def __init__(self, console: Terminal | None = None) -> None:
        self.console = console or Terminal(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:8}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            transient=True,
            speed_estimate_period=3600,  # a short period would make estimates jump at slow steps
        )
        self._printed = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, stage: str) -> None:
        """Start showing a stage."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._task = self._bar.add_task(stage, total=None, text="starting", eta="")
        self._stage = stage
        self._printed = time.monotonic()
        self.note(f"{stage}: started")

    def show(self, directory: Path) -> None:
        """Show the newest progress of the stage."""
        row = store.progress(directory)
        if row is None:
            return
        self._bar.update(self._task, completed=row.done, total=row.total or None, text=row.text)
        eta = self._bar.tasks[-1].time_remaining if row.eta is None else row.eta
        shown = "" if eta is None else str(timedelta(seconds=round(eta)))
        self._bar.update(self._task, eta=shown)
        if time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            share = f"{100 * row.done / row.total:.0f} % " if row.total else ""
            more = f", eta {eta:.0f} s" if eta else ""
            self.note(f"{self._stage}: {share}{row.text}{more}")

    def note(self, text: str) -> None:
        """Print a line if there is no bar."""
        if not self.console.is_terminal:
            say(text, file=sys.stderr)
