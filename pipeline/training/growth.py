"""What `method=` means for a network: nothing, the same branches everywhere, or growing ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

import dyrep
from pipeline.config.model import DyRep, Grow, Method, Static
from pipeline.training import growable
from pipeline.training.history import Rows


def prepare(model: nn.Module, method: Method, seed: int, image_size: int) -> dict[str, str]:
    """Give the network the branches it starts with; return what is left alone, and why.

    Raises:
        UserError: all of it, by a method that is to change something.
    """
    left = growable.left_alone(model, method)
    if isinstance(method, Static):
        torch.manual_seed(seed)
        example = torch.zeros(1, 3, image_size, image_size)
        absorb = example if method.absorb else None
        dyrep.expand(model, branches=tuple(method.branches), absorb=absorb, form=method.form)
    return left


class Growth:
    """Grows and cuts a network by its method and writes `growth.jsonl`.

    A row tells the time per step before and after, so it is written when the epoch that follows
    the adjustment has been timed; until then it waits here and in the checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        ema: nn.Module | None,
        method: Method,
        seed: int,
        rows: Rows,
        left: dict[str, str],
    ) -> None:
        self._rows = rows
        self.left = left
        self._waiting: list[dict[str, Any]] = []
        self.totals = {"grown": 0, "cut": 0}
        self._evolver = _evolver(model, optimizer, ema, method, seed)

    @property
    def rows(self) -> int:
        """How many rows are written."""
        return self._rows.count

    def accumulate(self, scaler: GradScaler) -> None:
        """Add this step's gradients to the saliency of each layer."""
        if self._evolver:
            self._evolver.accumulate(scaler)

    def due(self, epoch: int) -> bool:
        """Return whether to adjust after `epoch` (counted from 1)."""
        return self._evolver is not None and self._evolver.due(epoch - 1)

    def adjust(
        self, calibration: list[Tensor], epoch: int, step: int, step_seconds: float
    ) -> list[str]:
        """Grow and cut; return what was done, one line per event."""
        assert self._evolver is not None
        facts = {"epoch": epoch, "step": step}
        times = {"step_seconds_before": step_seconds, "step_seconds_after": None}
        events = [event.to_dict() for event in self._evolver.adjust(calibration=calibration)]
        self._waiting = [{**facts, **event, **times} for event in events]
        for event in events:
            self.totals["grown" if event["action"] == "grow" else "cut"] += 1
        lines = [_told(event) for event in events]
        return [*lines, *self._passed_over({e["layer"] for e in events})]

    def _passed_over(self, changed: set[str]) -> list[str]:
        """Take up what was passed over this time, and what is no more; return the new, told."""
        assert self._evolver is not None
        new = {k: v for k, v in self._evolver.left.items() if k not in self.left.keys() | changed}
        self.left = {k: v for k, v in self.left.items() if k not in changed} | new
        return growable.told(new)

    def price(self, step_cost: float | None) -> None:
        """Note in the waiting rows what a step costs now, in steps of the plain network."""
        self._waiting = [{**row, "step_cost": step_cost} for row in self._waiting]

    def settle(self, step_seconds: float) -> None:
        """Write the waiting rows, now that an epoch with the new structure has been timed."""
        self._rows.write([{**row, "step_seconds_after": step_seconds} for row in self._waiting])
        self._waiting = []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "rows": self._rows.count,
            "waiting": self._waiting,
            "totals": self.totals,
            "left": self.left,
            "evolver": self._evolver.state_dict() if self._evolver else None,
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self._waiting, self.totals = saved["waiting"], saved["totals"]
        self.left = saved.get("left", {})
        if self._evolver:
            self._evolver.load_state_dict(saved["evolver"])


def _evolver(
    model: nn.Module,
    optimizer: Optimizer,
    ema: nn.Module | None,
    method: Method,
    seed: int,
) -> dyrep.DyRep | None:
    if isinstance(method, Grow):
        return dyrep.Grower(
            model,
            optimizer,
            ema=ema,
            seed=seed,
            **method.model_dump(exclude={"name", "kind", "calibration_batches"}),
        )
    if not isinstance(method, DyRep):
        return None
    return dyrep.DyRep(
        model,
        optimizer,
        ema=ema,
        saliency=method.saliency,
        branches=tuple(method.branches),
        form=method.form,
        adjust_interval=method.adjust_interval,
        last_adjust_epoch=method.last_adjust_epoch,
        grow=method.grow,
        cut_std=method.cut_std,
        cut_ratio=method.cut_ratio,
        max_cost=method.max_cost,
        cost=method.cost,
        seed=seed,
    )


def _told(event: dict[str, Any]) -> str:
    price = "" if event["price"] is None else f" (for {event['price']:.3f} plain steps)"
    return f"{event['action']} {event['layer']}: {', '.join(event['branches'])}{price}"
