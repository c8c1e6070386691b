"""Detect a non-finite loss lazily; replay from the checkpoint to name its cause.

Checking every loss at once would make the GPU wait at each step, so losses are checked when they
are written, some steps later. To find the cause, the training resumes from the newest checkpoint,
which is older than the first bad step, and repeats the same steps while watching every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from pipeline.contract.world import World
from pipeline.data.loaders.base import Batch
from pipeline.display.errors import NoResult

MOST_SKIPPED = 20  # so many skipped steps in a row end the training; they are no accident
MOST_OF_EPOCH = 0.5  # skipped share of an epoch, at most; with more, nothing is learned


class NotFinite(Exception):
    """The loss of `step` is not finite; every process raises it at the same time."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


class Diverged(NoResult):
    """The loss is not finite, so training cannot continue; the message names step, layer, cure."""


def judge(skipped: int, overflowed: int, steps: int, epoch: int) -> list[str]:
    """Return lines about the skipped steps of an epoch.

    Args:
        skipped: number of steps with a non-finite loss or gradients.
        overflowed: number of steps that the loss scaler skipped, e.g. to find its first scale.
        steps: number of steps of the epoch.
        epoch: number of the epoch, from 1.

    Raises:
        Diverged: most steps were skipped, so the training has not learned from its data.
    """
    if skipped > MOST_OF_EPOCH * steps:
        raise Diverged(
            f"epoch {epoch}: {skipped} of {steps} steps were skipped because loss or gradients are "
            "not finite; lower train.lr, or see where with train.nonfinite=stop"
        )
    if overflowed > max(MOST_SKIPPED, MOST_OF_EPOCH * steps):
        raise Diverged(
            f"epoch {epoch}: {overflowed} of {steps} steps were skipped because gradients are "
            "beyond float16 at any scale of the loss; lower train.lr, or use "
            "train.precision=bfloat16"
        )
    reasons = {
        "not finite": skipped,
        "gradients beyond float16 at that scale of the loss": overflowed,
    }
    return [
        f"epoch {epoch}: {count} of {steps} steps skipped, {why}"
        for why, count in reasons.items()
        if count
    ]


def finite_gradients(model: nn.Module, scaler: GradScaler) -> bool:
    """Whether all gradients are finite; equal on every process, after the all-reduce.

    With an enabled loss scaler, which checks this itself, the result is True.
    """
    if scaler.is_enabled():
        return True
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


def explain(
    model: nn.Module,
    batches: Iterable[Batch],
    update: Callable[[Batch], Tensor],
    world: World,
    check_stop: Callable[[], None],
    steps: range,
) -> Diverged:
    """Repeat the steps from a checkpoint to a step with a non-finite loss, and name the cause.

    Args:
        model: the network, in the state of the checkpoint.
        batches: the batches after the checkpoint.
        update: trains on a batch and returns the loss.
        world: all processes; the first cause that one of them finds is reported.
        check_stop: called before each step; may raise.
        steps: from the step after the checkpoint to the step with the non-finite loss.
    """
    last = f"the last checkpoint is from step {steps.start - 1}"
    with watching(model) as layers:
        for step, batch in zip(steps, batches, strict=False):
            check_stop()
            loss = update(batch)
            seen = None
            if not loss.isfinite() or layers:
                seen = source(model, layers, batch.images)
            where = next(filter(None, world.gather(seen)), None)
            if where:
                return Diverged(
                    f"step {step}: the loss is not finite; {where}; {last}. Lower train.lr, or "
                    "leave such steps out with train.nonfinite=skip"
                )
    return Diverged(
        f"step {steps[-1]}: the loss was not finite, and was when the step was repeated; {last}. "
        "train.deterministic=true makes it repeatable"
    )


@contextmanager
def watching(model: nn.Module) -> Iterator[list[str]]:
    """Collect the layers with non-finite output, in the order of the forward."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    layers = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    handles = [layer.register_forward_hook(look(name)) for name, layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def source(model: nn.Module, layers: list[str], images: Tensor) -> str:
    """Return a text that names the source of the first non-finite value of a watched step."""
    if not torch.isfinite(images).all():
        return "the images of the batch are not finite"
    if layers:
        weight = getattr(model.get_submodule(layers[0]), "weight", None)
        if isinstance(weight, Tensor) and not torch.isfinite(weight).all():
            return f"the weight of {layers[0]} is not finite"
        return f"{layers[0]} is the first layer whose output is not finite"
    return "every layer's output is finite, the loss itself is not"
