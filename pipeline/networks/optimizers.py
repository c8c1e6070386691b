"""Optimizers by name: torch's SGD, and what timm's factory makes."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

import dyrep
from pipeline.config.train import Train
from pipeline.display.errors import UserError, nearest
from pipeline.networks.layers import depths

ON_GPU = ("bnb", "fused")  # what names of optimizers begin with that need one
ELSEWHERE = ("params", "lr", "weight_decay")  # what an optimizer takes from other settings


def build(model: nn.Module, train: Train, head: Collection[str] = ()) -> Optimizer:
    """Return the optimizer of a recipe, for the parameters that are not frozen.

    `sgd` is torch's, on a GPU as one kernel that does the loss scaler's part too. All others are
    timm's, with timm's defaults where `optimizer_args` says nothing.

    Args:
        model: Of which it is.
        train: The recipe.
        head: Names of the parameters that learn at `train.head_lr`.

    Raises:
        UserError: timm has none of that name, it does not take such arguments, or the head is
            frozen.
    """
    if head:
        check_head(model, head)
    groups = _groups(model, train, head)
    if train.optimizer == "sgd":
        fused = True if next(model.parameters()).is_cuda else None
        return SGD(
            groups, lr=train.lr, momentum=train.momentum, nesterov=train.nesterov, fused=fused
        )
    from timm.optim import create_optimizer_v2  # takes seconds: only where it is asked for

    _check(train.optimizer, train.optimizer_args or {})
    given = {key: _tuples(value) for key, value in (train.optimizer_args or {}).items()}
    made: Optimizer = create_optimizer_v2(groups, train.optimizer, lr=train.lr, **given)
    return made


def check_head(model: nn.Module, head: Collection[str]) -> None:
    """Refuse a learning rate for a class head that learns nothing.

    Raises:
        UserError: all of its parameters are frozen.
    """
    if not any(p.requires_grad for name, p in model.named_parameters() if name in head):
        raise UserError(
            "train.head_lr is for the class head, and model.freeze keeps that as it is; leave "
            "train.head_lr out, or freeze less"
        )


def needs_gpu(name: str) -> bool:
    """Return whether an optimizer of timm works on a GPU only: those of bitsandbytes and apex."""
    return name.startswith(ON_GPU)


def _groups(model: nn.Module, train: Train, head: Collection[str]) -> list[dict[str, Any]]:
    """Return the groups of the network, after those of a head that learns at its own rate."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    heads = [p for name, p in learning.items() if name in head]
    rest = {name: p for name, p in learning.items() if name not in head}
    groups = _by_layer(model, rest, train) if rest else []
    own = _by_decay(model, heads, train)[:2] if heads else []  # a head has no strengths
    return [{**group, "lr": train.head_lr} for group in own] + groups


def _by_layer(
    model: nn.Module, parameters: dict[str, nn.Parameter], train: Train
) -> list[dict[str, Any]]:
    """Return the parameters by weight decay and, with `layer_decay`, by layer.

    Each layer has all groups, also empty ones: what grows on it joins them.
    """
    if train.layer_decay is None:
        return _by_decay(model, list(parameters.values()), train)
    depth = depths(model)
    last = max(depth.values())
    layers: list[list[nn.Parameter]] = [[] for _ in range(last + 1)]
    for name, parameter in parameters.items():
        layers[depth.get(name, last)].append(parameter)
    return [
        {**group, "lr": train.lr * train.layer_decay ** (last - number)}
        for number, layer in enumerate(layers)
        for group in _by_decay(model, layer, train)
    ]


def _by_decay(
    model: nn.Module, parameters: list[nn.Parameter], train: Train
) -> list[dict[str, Any]]:
    """Return matrices and kernels, which decay; biases and norms; strengths, which never decay."""
    norms = [p for p in parameters if p.ndim <= 1]
    kernels = {
        "params": [p for p in parameters if p.ndim > 1],
        "weight_decay": train.weight_decay,
    }
    if not train.decay_norms:
        return [kernels, {"params": norms, "weight_decay": 0.0}]
    scales = {id(strength) for strength in dyrep.scales(model).values()}
    strengths = [p for p in norms if id(p) in scales]
    decaying = [p for p in norms if id(p) not in scales]
    return [
        kernels,
        {"params": decaying, "weight_decay": train.weight_decay},
        {"params": strengths, "weight_decay": 0.0},  # may be empty: strengths that grow join it
    ]


def _check(name: str, given: dict[str, Any]) -> None:
    from timm.optim import get_optimizer_class, list_optimizers

    valid = list_optimizers()
    if name not in valid:
        cure = nearest(name, valid, "train.optimizer=")
        raise UserError(f"train.optimizer={name} is no optimizer of timm; {cure}")
    taken = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    listed = sorted(taken.keys() - set(ELSEWHERE))
    for key in given:
        if key not in listed:
            raise UserError(
                f"train.optimizer_args.{key} is nothing that {name} takes; "
                f"valid are: {', '.join(listed)}"
            )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
