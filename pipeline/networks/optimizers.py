"""Build optimizers by name: torch's SGD, or one of timm."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

import dyrep
from dyrep.optimizers import ParamGroup
from pipeline.config.train import Train
from pipeline.display.errors import UserError, nearest
from pipeline.networks.layers import depths

ON_GPU = ("bnb", "fused")  # prefixes of optimizers that need a GPU
ELSEWHERE = ("params", "lr", "weight_decay")  # arguments that come from other settings


def build(model: nn.Module, train: Train, head: Collection[str] = ()) -> Optimizer:
    """Return the optimizer of a recipe, for the parameters that are not frozen.

    `sgd` is torch's SGD; on a GPU the fused one, which also applies the loss scale. All others are
    timm's, with timm's defaults unless `optimizer_args` sets others.

    Args:
        model: the network to optimize.
        train: the recipe.
        head: names of the parameters that learn at `train.head_lr`.

    Raises:
        UserError: timm has no such optimizer, or it does not support an argument.
    """
    groups = _groups(model, train, head)
    if train.optimizer == "sgd":
        fused = True if next(model.parameters()).is_cuda else None
        return SGD(
            groups, lr=train.lr, momentum=train.momentum, nesterov=train.nesterov, fused=fused
        )
    from timm.optim import create_optimizer_v2  # the import takes seconds

    _check(train.optimizer, train.optimizer_args or {})
    given = {key: _tuples(value) for key, value in (train.optimizer_args or {}).items()}
    made: Optimizer = create_optimizer_v2(groups, train.optimizer, lr=train.lr, **given)
    return made


def check_head(model: nn.Module, head: Collection[str]) -> None:
    """Refuse a learning rate for a class head that is not there, or that is frozen.

    Args:
        model: the network to optimize.
        head: names of the parameters of its class head.

    Raises:
        UserError: the network has no class head, or all parameters of it are frozen.
    """
    if not head:
        raise UserError(
            "train.head_lr is for the class head, and no parameter of this network depends on the "
            "number of classes; have model.target take num_classes, or leave train.head_lr out"
        )
    if not any(p.requires_grad for name, p in model.named_parameters() if name in head):
        raise UserError(
            "train.head_lr is for the class head, and model.freeze keeps that as it is; leave "
            "train.head_lr out, or freeze less"
        )


def needs_gpu(name: str) -> bool:
    """Whether an optimizer of timm needs a GPU (those of bitsandbytes and apex do)."""
    return name.startswith(ON_GPU)


def _groups(model: nn.Module, train: Train, head: Collection[str]) -> list[ParamGroup]:
    """Return the parameter groups; those of a classifier with its own learning rate come first."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    heads = [p for name, p in learning.items() if name in head]
    rest = {name: p for name, p in learning.items() if name not in head}
    groups = _by_layer(model, rest, train) if rest else []
    own = _by_decay(model, heads, train)[:2] if heads else []  # a classifier has no strengths
    return [{**group, "lr": train.head_lr} for group in own] + groups


def _by_layer(
    model: nn.Module, parameters: dict[str, nn.Parameter], train: Train
) -> list[ParamGroup]:
    """Return the parameter groups by weight decay and, with `layer_decay`, by layer.

    Each layer has all groups, even if empty, because branches that grow join them.
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


def _by_decay(model: nn.Module, parameters: list[nn.Parameter], train: Train) -> list[ParamGroup]:
    """Return three groups: matrices and kernels (decay), biases and norms, branch strengths.

    Strengths never decay; biases and norms decay with `train.decay_norms`.
    """
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
        {
            "params": strengths,
            "weight_decay": 0.0,
        },  # may be empty; strengths of new branches join it
    ]


def _check(name: str, given: dict[str, Any]) -> None:
    from timm.optim import get_optimizer_class, list_optimizers

    valid = list_optimizers()
    if name not in valid:
        cure = nearest(name, valid, "train.optimizer=")
        raise UserError(f"train.optimizer={name} is not an optimizer of timm; {cure}")
    taken = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    listed = sorted(taken.keys() - set(ELSEWHERE))
    for key in given:
        if key not in listed:
            raise UserError(
                f"{name} has no argument {key} (train.optimizer_args); "
                f"valid are: {', '.join(listed)}"
            )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
