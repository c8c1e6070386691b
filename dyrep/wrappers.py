"""Invalidate wrappers and averages that were made before a change of their network.

A DistributedDataParallel reduces the parameters with which it was made, and an average pairs its
weights with those of the network by position. Both would silently continue with outdated
parameters.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dyrep import surgery

UPDATES = ("update_parameters", "update")  # attributes of torch's and timm's averages


def outdate(
    model: nn.Module, before: Mapping[str, Tensor], average: nn.Module | None = None
) -> None:
    """Make wrappers and averages of a changed network raise when they are used next.

    The next forward of a DistributedDataParallel around the model raises, and so does the next
    update of an average other than `average`.

    Args:
        model: The model after the change.
        before: `dict(model.named_parameters())` before the change.
        average: The bare average that was updated.
    """
    if {id(p) for p in before.values()} == {id(p) for p in model.parameters()}:
        return
    for holder in _holders():
        if isinstance(holder, DistributedDataParallel):
            if any(module is model for module in holder.modules()):
                holder.register_forward_pre_hook(_refuse_forward)
        elif _names(holder) == set(before) and surgery.bare(holder) is not average:
            for update in UPDATES:
                if hasattr(type(holder), update):
                    setattr(holder, update, partial(_update, holder, update))


def _holders() -> Iterator[nn.Module]:
    """Yield all live modules that hold another module as `module`."""
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.Module):
            modules = vars(thing).get("_modules")
            if isinstance(modules, dict) and isinstance(modules.get("module"), nn.Module):
                yield thing


def _names(model: nn.Module) -> Collection[str]:
    return {name for name, _ in surgery.bare(model).named_parameters()}


def _refuse_forward(ddp: nn.Module, _: Any) -> None:
    raise RuntimeError(
        "the network inside this DistributedDataParallel has changed, and what is new would not be "
        "reduced: write `ddp = dyrep.rewrap(ddp)` after each change"
    )


def _update(average: nn.Module, update: str, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if _names(average) != _names(model):
        raise RuntimeError(
            "this average of weights has not followed a change of its network: give it to "
            "dyrep.DyRep(ema=...), or make it again"
        )
    return getattr(type(average), update)(average, model, *args, **kwargs)
