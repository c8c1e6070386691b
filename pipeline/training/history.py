"""Write `history.jsonl` and `growth.jsonl`: each step and event once, even after a kill.

A checkpoint records the number of rows; resuming from it truncates the file to that number.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from pipeline.config.train import Train
from pipeline.contract.world import World
from pipeline.records import rundir
from pipeline.training import clock
from pipeline.training.clock import Mark, OnItsWay
from pipeline.training.nonfinite import NotFinite
from slurm import files

STEPS_PER_WRITE = 20  # steps per write; until then their losses stay on the device


class Rows:
    """A JSON-lines file that continues after `known` rows.

    The file is replaced by a new one, which is kept open. An older attempt that still runs has the
    old file open, so it cannot write into the new one.
    """

    def __init__(self, path: Path, known: int, writes: bool) -> None:
        self.count = known
        self._file: int | None = None
        if writes:
            kept = rundir.read_text(path).splitlines(keepends=True)[:known] if path.exists() else []
            if len(kept) < known:
                raise RuntimeError(f"{path} has {len(kept)} rows, the checkpoint records {known}")
            rundir.write_text(path, "".join(kept))
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows and force them to disk."""
        self.count += len(rows)
        if self._file is not None and rows:
            files.append_to(self._file, "".join(rundir.to_json(row) + "\n" for row in rows))
            os.fsync(self._file)


@dataclass(frozen=True)
class Step:
    """A step whose loss is still on the device."""

    step: int
    epoch: int
    samples: int
    lr: float


class HistoryState(TypedDict, total=False):
    """The state of a `History` in a checkpoint; empty for a training that begins."""

    rows: int
    epoch_losses: list[float]
    epoch_seconds: list[float]
    data_seconds: float
    skipped: int


class _Sent(NamedTuple):
    """Steps whose losses are being copied to the host."""

    losses: OnItsWay
    rows: list[Step]
    marks: list[tuple[Mark, Mark, Mark]]


class History:
    """Collects the numbers of steps and epochs and writes them to `history.jsonl`."""

    def __init__(self, path: Path, world: World, recipe: Train, saved: HistoryState) -> None:
        self.world, self._recipe = world, recipe
        self._rows = Rows(path, saved.get("rows", 0), world.main)
        self._epoch_losses = saved.get("epoch_losses", [])
        self._epoch_seconds = saved.get("epoch_seconds", [])
        self._data_seconds = saved.get("data_seconds", 0.0)
        self.skipped = saved.get("skipped", 0)  # skipped steps of all finished epochs
        self.waiting = 0.0  # fraction of the last epoch spent waiting for data
        self._waiting: list[Step] = []
        self._losses: list[Tensor] = []
        self._marks: list[tuple[Mark, Mark, Mark]] = []  # per step: begin, batch arrived, end
        self._sent: _Sent | None = None
        self.start_clock()

    @property
    def rows(self) -> int:
        """Number of rows written."""
        return self._rows.count

    def start_clock(self) -> None:
        """Start timing the next step; call this after anything other than a step."""
        self._begin = self._came = clock.mark(self.world.device)

    def batch_came(self) -> None:
        """Mark the arrival of a batch: the wait for data ends here."""
        self._came = clock.mark(self.world.device)

    def step(self, step: int, epoch: int, loss: Tensor, lr: float) -> None:
        """Record a step; `loss` is a scalar tensor, read only when its row is written.

        Losses are copied to the host in groups. A group is written when the copy of the next group
        starts, because by then the GPU has finished copying it.
        """
        end = clock.mark(self.world.device)
        self._marks.append((self._begin, self._came, end))
        self._begin = end
        self._losses.append(loss)
        self._waiting.append(Step(step, epoch, step * self._recipe.batch_size, lr))
        if len(self._waiting) >= STEPS_PER_WRITE:
            self._receive()
            self._send()
        if self.world.device.type == "cpu":
            self._receive()

    def flush(self) -> None:
        """Write all steps, with the loss averaged over all processes (collective).

        A step that was skipped has no loss.

        Raises:
            NotFinite: a loss is not finite, and the settings do not say to skip such steps.
        """
        self._receive()
        if self._waiting:
            self._send()
        self._receive()

    def _send(self) -> None:
        losses = self.world.total(torch.stack(self._losses).double()) / self.world.world_size
        self._sent = _Sent(OnItsWay(losses), self._waiting, self._marks)
        self._waiting, self._losses, self._marks = [], [], []

    def _receive(self) -> None:
        if self._sent is None:
            return
        sent, self._sent = self._sent, None
        rows = []
        for loss, row, marks in zip(sent.losses.get(), sent.rows, sent.marks, strict=True):
            begin, came, end = marks
            seconds, waited = clock.seconds(begin, end), clock.seconds(begin, came)
            self._epoch_seconds.append(seconds)
            self._data_seconds += waited
            if math.isfinite(loss):
                self._epoch_losses.append(loss)
            elif self._recipe.nonfinite == "stop":
                raise NotFinite(row.step)
            times = {"step_seconds": round(seconds, 6), "data_seconds": round(waited, 6)}
            shown = loss if math.isfinite(loss) else None
            rows.append({"kind": "step", **vars(row), **times, "loss": shown})
        self._rows.write(rows)

    @property
    def step_seconds(self) -> float:
        """The median seconds of the steps of the present epoch (collective)."""
        self.flush()
        return statistics.median(self._epoch_seconds)

    def skipped_now(self) -> tuple[int, int]:
        """Return the number of skipped steps, and of all steps, in the current epoch."""
        self.flush()
        steps = len(self._epoch_seconds)
        return steps - len(self._epoch_losses), steps

    def epoch(
        self,
        step: int,
        epoch: int,
        metrics: dict[str, float],
        images: int,
        facts: Mapping[str, object],
    ) -> float:
        """Write the row of an epoch; return the median seconds per step.

        `images` is the batch size; `facts` about the network are added to the row.
        """
        skipped, _ = self.skipped_now()
        self.skipped += skipped
        seconds = sum(self._epoch_seconds)
        self.waiting = self._data_seconds / seconds
        row = {
            "kind": "epoch",
            "step": step,
            "epoch": epoch,
            "samples": step * self._recipe.batch_size,
            "loss": statistics.fmean(self._epoch_losses) if self._epoch_losses else None,
            **metrics,
            "seconds": round(seconds, 6),
            "data_seconds": round(self._data_seconds, 6),
            "images_per_s": len(self._epoch_seconds) * images / seconds,
            **({"skipped": skipped} if skipped else {}),
            **facts,
        }
        self._rows.write([row])
        median = statistics.median(self._epoch_seconds)
        self._epoch_losses, self._epoch_seconds, self._data_seconds = [], [], 0.0
        return median

    def state(self) -> HistoryState:
        """Return the state that a checkpoint keeps; call `flush` first."""
        return {
            "rows": self._rows.count,
            "epoch_losses": self._epoch_losses,
            "epoch_seconds": self._epoch_seconds,
            "data_seconds": self._data_seconds,
            "skipped": self.skipped,
        }
