"""Write the curves of a run as `csv/metrics.csv` and as an event file of TensorBoard.

A writer starts by writing the whole history again. So steps that were repeated after an
interruption occur once, and rows that a killed writer had not written are not missing.
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
PAUSE = 5.0  # seconds between two reads of the files of a training


class Writer(Protocol):
    """Writes the rows of a run, in order."""

    def add(self, new: list[Row]) -> None:
        """Write rows and flush them."""


class Table:
    """`csv/metrics.csv`: a row per step, a column per metric; a missing number is an empty cell.

    The file is rewritten each time, because metrics that come later are new columns.
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
    """`tensorboard/`: one event file with each metric by name and step."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        # purge_step: a TensorBoard that has read the earlier file discards that file's steps
        self._writer: Any = SummaryWriter(str(folder), purge_step=0)

    def add(self, new: list[Row]) -> None:
        for row in new:
            for name, value in row.items():
                if name not in rows.AXES and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()


WRITERS: dict[str, type[Table] | type[Events]] = {"csv": Table, "tensorboard": Events}


def write(run: Path, kinds: Iterable[str], parent: int | None = None) -> int:
    """Write the curves of a run; return the number of rows.

    Args:
        run: its directory.
        kinds: keys of `WRITERS`.
        parent: id of the training process; new rows are written until it ends.

    Raises:
        UserError: lines of the history are damaged; all other rows were written.
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
            time.sleep(max(PAUSE, 20 * took))  # writing a long table takes seconds
