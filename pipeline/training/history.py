"""`history.jsonl` and `growth.jsonl`: each step and event once, whatever was killed in between.

A checkpoint notes how many rows it knows; resuming from it cuts the file back to that many.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import rundir
from pipeline.training.distributed import World

STEPS_PER_WRITE = 20  # losses stay on the device until then: one synchronisation for many


class Rows:
    """A JSON-lines file that continues after `known` rows; only the main process writes."""

    def __init__(self, path: Path, known: int, world: World) -> None:
        self.count = known
        self._path, self._writes = path, world.main
        if self._writes:
            kept = path.read_text().splitlines(keepends=True)[:known] if path.exists() else []
            if len(kept) < known:
                raise RuntimeError(f"{path} has {len(kept)} rows, the checkpoint knows {known}")
            rundir.write_text(path, "".join(kept))

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and force them to disk."""
        self.count += len(rows)
        if self._writes and rows:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)
            rundir.sync(self._path)


class History:
    """The numbers of each step and epoch, on their way into `history.jsonl`."""

    def __init__(self, path: Path, world: World, saved: dict[str, Any]) -> None:
        self.world = world
        self._rows = Rows(path, saved.get("rows", 0), world)
        self._epoch_losses: list[float] = saved.get("epoch_losses", [])
        self._epoch_seconds: list[float] = saved.get("epoch_seconds", [])
        self._waiting: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Begin timing the next step; call when something other than a step went before it."""
        self._mark = time.perf_counter()

    def since_mark(self) -> float:
        """Return the seconds since the last step ended."""
        return time.perf_counter() - self._mark

    def step(self, step: int, epoch: int, loss: Tensor, lr: float, data_seconds: float) -> None:
        """Note a step; `loss` is a scalar tensor and is not read before the rows are written."""
        seconds = self.since_mark()
        self.start_clock()
        self._epoch_seconds.append(seconds)
        self._losses.append(loss)
        times = {"step_seconds": round(seconds, 6), "data_seconds": round(data_seconds, 6)}
        self._waiting.append({"kind": "step", "step": step, "epoch": epoch, "lr": lr, **times})
        if len(self._waiting) >= STEPS_PER_WRITE:
            self.flush()

    def flush(self) -> None:
        """Write the waiting steps, the loss averaged over all processes (collective)."""
        if not self._waiting:
            return
        losses = self.world.total(torch.stack(self._losses).double()) / self.world.world_size
        self._epoch_losses += losses.tolist()
        pairs = zip(self._waiting, losses.tolist(), strict=True)
        self._rows.write([{**row, "loss": loss} for row, loss in pairs])
        self._waiting, self._losses = [], []

    def epoch(
        self, step: int, epoch: int, metrics: dict[str, float], images: int, parameters: int
    ) -> float:
        """Write the row of an epoch of `images` images per step; return its median step seconds."""
        self.flush()
        seconds = sum(self._epoch_seconds)
        row = {
            "kind": "epoch",
            "step": step,
            "epoch": epoch,
            "loss": statistics.fmean(self._epoch_losses),
            **metrics,
            "seconds": round(seconds, 6),
            "images_per_s": len(self._epoch_seconds) * images / seconds,
            "parameters": parameters,
        }
        self._rows.write([row])
        median = statistics.median(self._epoch_seconds)
        self._epoch_losses, self._epoch_seconds = [], []
        return median

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; flush first."""
        return {
            "rows": self._rows.count,
            "epoch_losses": self._epoch_losses,
            "epoch_seconds": self._epoch_seconds,
        }
