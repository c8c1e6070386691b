"""Handle optimizer state, learning rate and averages without making the host wait for a GPU."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config.train import Train
from pipeline.training.pace import Pace


def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, which may have been saved on another kind of device."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups if "fused" in optimizer.defaults else ():
        group["fused"] = optimizer.defaults["fused"]


def arrange(optimizer: Optimizer) -> None:
    """Give each parameter a momentum of the same memory format, as a fused kernel needs.

    A missing momentum is set to zero, which makes the first momentum equal to the gradient. Torch
    itself would start with uninitialised memory if the loss scaler skips the very first step.
    """
    for group in optimizer.param_groups:
        one_kernel = group.get("fused") and group.get("momentum")
        for parameter in group["params"] if one_kernel else ():
            state = optimizer.state[parameter]
            there = state.get("momentum_buffer")
            if there is None or there.stride() != parameter.stride():
                state["momentum_buffer"] = torch.zeros_like(parameter)
                if there is not None:
                    state["momentum_buffer"].copy_(there)


Tensors = tuple[Tensor, ...] | list[Tensor]


class Overflows:
    """Counts the steps that the loss scaler skips because a gradient overflows float16.

    The scaler does not call the optimizer then, or, for a fused optimizer, sets a flag on the
    device, which is read only when the count is needed.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.total = 0  # overflows of earlier epochs
        self._scaled = self._called = 0
        self._flagged: Tensor | int = 0
        optimizer.register_step_pre_hook(self._step)

    def ask(self) -> None:
        """Count a call of the scaler's `step`."""
        self._scaled += 1

    def _step(self, optimizer: Optimizer, *_: Any) -> None:
        self._called += 1
        self._flagged = self._flagged + getattr(optimizer, "found_inf", 0)

    @property
    def now(self) -> int:
        """Number of overflows in the current epoch."""
        return self._scaled - self._called + int(self._flagged)

    def end_epoch(self) -> None:
        """Add the current epoch's count to the total, and restart counting."""
        self.total += self.now
        self._scaled = self._called = self._flagged = 0

    def state(self) -> dict[str, int]:
        """Return the state that a checkpoint keeps."""
        return {"now": self.now, "total": self.total}

    def load_state(self, saved: dict[str, int]) -> None:
        """Restore a state that `state` returned."""
        self._scaled, self.total = saved["now"], saved["total"]


class Averaged(AveragedModel):
    """The exponential moving average of the weights and running statistics of a network.

    The result equals that of torch's AveragedModel, but that class makes the host wait in every
    step, because it reads its counter, a tensor.

    Args:
        model: the network.
        decay: the share of the average that is kept in a step.
        warmup: keep at most (1 + t) / (10 + t) after t steps, as TensorFlow's
            ExponentialMovingAverage with `num_updates` does, so that the first weights are soon
            forgotten.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        self._decay, self._warmup = decay, warmup
        self._steps = 0
        super().__init__(model, multi_avg_fn=self._blend, use_buffers=True)
        self._begun = False

    def _blend(self, own: Tensors, new: Tensors, steps: Tensor | int) -> None:
        begun = (1 + self._steps) / (10 + self._steps)
        decay = min(self._decay, begun) if self._warmup else self._decay
        get_ema_multi_avg_fn(decay)(own, new, steps)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the current weights to the average; the first ones are copied."""
        if not self._begun:
            self._steps = int(self.n_averaged)  # true after loading a checkpoint
            self._begun = self._steps > 0
            super().update_parameters(model)
            self._steps += 1
            return
        for floating in (True, False):
            own, new = (_tensors(network, floating) for network in (self.module, model))
            if own:
                self._blend(own, new, self.n_averaged)
        self.n_averaged += 1
        self._steps += 1


def _tensors(model: nn.Module, floating: bool) -> list[torch.Tensor]:
    found = chain(model.parameters(), model.buffers())
    return [tensor for tensor in found if tensor.is_floating_point() == floating]


def averaged(model: nn.Module, train: Train) -> Averaged | None:
    """Return the average of the weights, if `train.ema` is set."""
    return None if train.ema is None else Averaged(model, train.ema, train.ema_warmup)


def schedule(optimizer: Optimizer, pace: Pace) -> LambdaLR:
    """Return a linear warm-up followed by the schedule, stepped once per optimizer step."""
    return LambdaLR(optimizer, lambda step: pace.lr_factor(step))
