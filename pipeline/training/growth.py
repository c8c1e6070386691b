"""Apply `method=`: a plain network, static branches, or growth during training."""

from __future__ import annotations

import math
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

import dyrep
from dyrep.block import blocks
from dyrep.state import EvolverState
from pipeline.config.base import Form
from pipeline.config.model import DyRep, Grow, Growing, Method, Static, Structured
from pipeline.networks import structures
from pipeline.training import growable
from pipeline.training.history import Rows


def prepare(
    model: nn.Module,
    method: Method,
    seed: int,
    size: tuple[int, ...],
    own_branches: bool = False,
) -> dict[str, str]:
    """Give the network its initial kernels and branches; return which convs get none, and why.

    Args:
        model: a plain network; changed in place.
        method: the method to apply.
        seed: seed of new weights.
        size: channels, height and width of an image.
        own_branches: whether the model is a RepVGG that is to get its own branches, too.

    Raises:
        UserError: the method should change the network, and no convolution can get branches.
    """
    if method.start == "identity":
        dyrep.identity_start(model)
    left = growable.left_alone(model, method)
    example = torch.zeros(1, *size)
    torch.manual_seed(seed)
    if own_branches and not isinstance(method, Structured):  # a structure already includes them
        _own_branches(model, _form(method), example)
    if isinstance(method, Static):
        dyrep.expand(
            model,
            branches=tuple(method.branches),
            absorb=example if method.absorb else None,
            form=method.form,
            widen_depthwise=method.widen_depthwise,
        )
    if isinstance(method, Structured):
        structures.apply(model, method)
    return left


def _form(method: Method) -> Form:
    """Return the form of the method's blocks; if it has none, the form of published networks."""
    return "linear" if isinstance(method, Grow) else getattr(method, "form", "batchnorm")


@torch.no_grad()
def _own_branches(model: nn.Module, form: Form, example: Tensor) -> None:
    """Give a RepVGG its 1x1 and identity branches, with the weights that timm begins with.

    In a linear block they have no norms, and the batch norm behind the block stays.
    """
    absorb = example if form == "batchnorm" else None
    dyrep.expand(model, branches=dyrep.REPVGG_BRANCHES, absorb=absorb, form=form, own=True)
    for block in blocks(model).values() if form == "batchnorm" else ():
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module is not block.inner:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 0.1, 0.1)
                nn.init.normal_(module.bias, 0.0, 0.1)


class GrowthState(TypedDict):
    """The state of a `Growth` in a checkpoint; older versions may lack `left` and `reached`."""

    rows: int
    waiting: list[dict[str, object]]
    totals: dict[str, int]
    left: NotRequired[dict[str, str]]
    reached: NotRequired[int]
    evolver: EvolverState | None


class Growth:
    """Grows and cuts a network according to its method, and writes `growth.jsonl`.

    A row holds the time per step before and after the change. It is therefore written at the end of
    the next epoch; until then this object and the checkpoints keep it.
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
        warmup_epochs: int,
    ) -> None:
        self._rows = rows
        self.left = left
        self._waiting: list[dict[str, object]] = []  # rows of `growth.jsonl`
        self.totals = {"grown": 0, "cut": 0}
        self.over = False  # True: no adjustment will come, whatever the schedule says
        self._reached = 0  # number of scheduled adjustments that have passed
        self._method = method
        # the short steps of the warm-up would make `Grower` overrate branches
        self._begin = warmup_epochs if isinstance(method, Grow) else 0
        self._evolver = _evolver(model, optimizer, ema, method, seed)

    @property
    def rows(self) -> int:
        """Number of rows written."""
        return self._rows.count

    @property
    def changed(self) -> bool:
        """Whether the last adjustment changed the network; valid until the next epoch ends."""
        return bool(self._waiting)

    def accumulate(self, scaler: GradScaler | None, epochs: float) -> None:
        """Add this step's gradients to the saliency of each layer.

        Args:
            scaler: scaler of the loss, if the gradients are scaled.
            epochs: progress in epochs; under a budget, in epochs of the plain network.
        """
        if self._evolver and epochs >= self._begin:
            self._evolver.accumulate(scaler)

    def due(self, epochs: float, last: float) -> bool:
        """Whether to adjust now, at the end of an epoch.

        Args:
            epochs: progress in epochs; under a budget, in epochs of the plain network. One epoch
                may pass several scheduled adjustments. It may also pass the end of growth; it still
                adjusts if it began before that.
            last: progress made by the epoch that has ended.
        """
        if self._evolver is None or self.over or epochs - last >= self._evolver.last_adjust_epoch:
            return False
        return self._times(epochs) > self._reached

    def to_come(self, done: float, epochs: float) -> int:
        """Return the number of adjustments to come, with `done` of `epochs` epochs done."""
        if self._evolver is None or self.over or done > self._evolver.last_adjust_epoch:
            return 0
        return max(0, self._times(math.ceil(epochs) - 1) - self._reached)

    def _times(self, epochs: float) -> int:
        assert self._evolver is not None
        window, interval = (
            min(epochs, self._evolver.last_adjust_epoch),
            self._evolver.adjust_interval,
        )
        return max(0, int(window // interval) - self._begin // interval)

    @property
    def batches(self) -> int:
        """Number of batches that `adjust` needs."""
        assert self._evolver is not None and isinstance(self._method, Growing)
        return 1 if self._evolver.form == "linear" else self._method.calibration_batches

    @property
    def always_grows(self) -> bool:
        """Whether an adjustment grows whatever a branch would gain."""
        return isinstance(self._method, DyRep)

    @property
    def calibrating(self) -> int:
        """Calibration of the layers that an adjustment grows, in steps of the present network.

        A layer with batch norms takes three forwards of each batch, and a linear one takes none.
        """
        assert self._evolver is not None
        return 0 if self._evolver.form == "linear" else self._evolver.grow * self.batches

    def adjust(
        self,
        calibration: list[Tensor],
        epochs: float,
        epoch: int,
        step: int,
        step_seconds: float,
    ) -> list[str]:
        """Grow and cut; return one line per event.

        Args:
            calibration: `batches` batches (N, C, H, W).
            epochs: as for `due`.
            epoch: number of finished epochs.
            step: number of the last step.
            step_seconds: duration of a step before the change.
        """
        assert self._evolver is not None
        self._reached = self._times(epochs)
        facts = {"epoch": epoch, "step": step}
        times = {"step_seconds_before": step_seconds, "step_seconds_after": None}
        events = self._evolver.adjust(calibration=calibration)
        self._waiting = [{**facts, **event.to_dict(), **times} for event in events]
        for event in events:
            self.totals["grown" if event.action == "grow" else "cut"] += 1
        lines = [_log_line(event) for event in events]
        return [*lines, *self._passed_over({event.layer for event in events})]

    def _passed_over(self, changed: set[str]) -> list[str]:
        """Update `left` after an adjustment; return lines about newly skipped layers."""
        assert self._evolver is not None
        new = {k: v for k, v in self._evolver.left.items() if k not in self.left.keys() | changed}
        self.left = {k: v for k, v in self.left.items() if k not in changed} | new
        return growable.reasons(new)

    def price(self, step_cost: float | None, adjusting_steps: float) -> None:
        """Add the price of a step and the cost of the adjustment, in plain steps."""
        costs = {"step_cost": step_cost, "adjusting_steps": round(adjusting_steps, 4)}
        self._waiting = [{**row, **costs} for row in self._waiting]

    def write_waiting(self, step_seconds: float | None) -> None:
        """Write the waiting rows, with the time per step of the epoch after the change.

        `step_seconds` is None if no epoch followed.
        """
        self._rows.write([{**row, "step_seconds_after": step_seconds} for row in self._waiting])
        self._waiting = []

    def state(self) -> GrowthState:
        """Return the state that a checkpoint keeps."""
        return {
            "rows": self._rows.count,
            "waiting": self._waiting,
            "totals": self.totals,
            "left": self.left,
            "reached": self._reached,
            "evolver": self._evolver.state_dict() if self._evolver else None,
        }

    def load_state(self, saved: GrowthState) -> None:
        """Restore a state that `state` returned."""
        self._waiting, self.totals = saved["waiting"], saved["totals"]
        self.left = saved.get("left", {})
        if self._evolver:
            assert saved["evolver"] is not None  # a checkpoint of another method is refused
            self._evolver.load_state_dict(saved["evolver"])
            self._reached = saved.get("reached", self._evolver.adjustments)


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
            **method.model_dump(exclude={"name", "start", "kind", "calibration_batches"}),
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


def _log_line(event: dyrep.Event) -> str:
    price = "" if event.price is None else f" (for {event.price:.3f} plain steps)"
    return f"{event.action} {event.layer}: {', '.join(event.branches)}{price}"
