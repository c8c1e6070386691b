"""The curves of a run as `csv/metrics.csv` and as an event file of TensorBoard, from its files.

Who begins to write makes both anew from the history. So what an interruption took back, or did
again, is there once; and what a writer that was killed had not written is there, too.
"""

from __future__ import annotations

import csv
import io
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.display.errors import UserError
from pipeline.records import rundir
from pipeline.tracking import rows
from pipeline.tracking.rows import Row, Steps
from pipeline.tracking.session import only_writer, over

if TYPE_CHECKING:
    from collections.abc import Iterable

LOCK = ".curves.lock"
PAUSE = 5.0  # seconds between two looks at the files of a training


class Writer(Protocol):
    """Takes the rows of a run in their order."""

    def add(self, new: list[Row]) -> None:
        """Write rows; all of them can be read afterwards."""


class Table:
    """`csv/metrics.csv`: a row per step, a column per number, empty where there is none.

    It is written whole, for numbers that come later are new columns.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "csv" / "metrics.csv"
        self._path.parent.mkdir(exist_ok=True)
        self._rows: list[Row] = []

    def add(self, new: list[Row]) -> None:
        self._rows += new
        columns = dict.fromkeys(
            key for row in (dict.fromkeys(rows.AXES, 0), *self._rows) for key in row
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        rundir.write_text(self._path, text.getvalue())


class Events:
    """`tensorboard/`: one event file, each number under its name and at its step."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        # a TensorBoard that shows the earlier file forgets what it has from step 0 on
        self._writer: Any = SummaryWriter(str(folder), purge_step=0)

    def add(self, new: list[Row]) -> None:
        for row in new:
            for name, value in row.items():
                if name not in rows.AXES and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()


WRITERS: dict[str, type[Table] | type[Events]] = {"csv": Table, "tensorboard": Events}


def write(run: Path, kinds: Iterable[str], parent: int | None = None) -> int:
    """Write the curves of a run; return how many rows they have.

    Args:
        run: its directory.
        kinds: of `WRITERS`.
        parent: a process; as long as it trains, what it adds is written, too.
    """
    with only_writer(run, LOCK):
        writers: list[Writer] = [WRITERS[kind](run) for kind in kinds]
        steps, count = Steps(run / "train"), 0
        while True:
            ended = parent is None or over(run, parent)
            new = list(steps.new(complete=ended and rows.state(run) != "preempted"))
            if new or not count:
                began = time.monotonic()
                for writer in writers:
                    writer.add(new)
                count += len(new)
                took = time.monotonic() - began
            if ended and steps.damaged:
                lines = ", ".join(steps.damaged)
                raise UserError(f"cannot be read: {lines}; all else was written")
            if ended:
                return count
            time.sleep(max(PAUSE, 20 * took))  # a long table takes seconds
