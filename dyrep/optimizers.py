"""Check that an optimizer supports a change of structure; initialise state of new parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer

ParamGroup = dict[str, Any]  # torch's own form: `params`, and options of the optimizer
OWN = ("param_groups", "state", "defaults")  # attributes of every optimizer


def refuse_whole(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that keeps parameters outside of its parameter groups.

    Raises:
        TypeError: the message names the optimizer, and which one to use instead.
    """
    parameters = set(model.parameters())
    for layer in layers(optimizer):
        for name, value in vars(layer).items():
            if name not in OWN and _holds(value, parameters, optimizer):
                raise TypeError(
                    f"{type(layer).__name__} keeps parameters of its own ({name}) beside its "
                    "groups, so it would not train what grows; use an optimizer with a state per "
                    "parameter, such as SGD or AdamW"
                )


def layers(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield an optimizer and the optimizers inside it that share its groups."""
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer) and value.param_groups is optimizer.param_groups:
            yield from layers(value)


def _holds(value: Any, parameters: Set[Tensor], optimizer: Optimizer) -> bool:
    if isinstance(value, Tensor):
        return value in parameters
    if isinstance(value, nn.Module):
        return not parameters.isdisjoint(value.parameters())
    if isinstance(value, Optimizer):
        return value.param_groups is not optimizer.param_groups
    if isinstance(value, Mapping):
        return any(_holds(v, parameters, optimizer) for v in (*value, *value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(_holds(v, parameters, optimizer) for v in value)
    return False


def initial_state(optimizer: Optimizer, group: ParamGroup, parameter: Tensor) -> None:
    """Give a new parameter the initial state of its optimizer.

    Adagrad creates this state when it is built, and the fused kernel of SGD needs a momentum for
    all parameters or for none; other optimizers create the state at the first step.
    """
    for layer in layers(optimizer):
        if isinstance(layer, Adagrad):
            options = {key: value for key, value in group.items() if key in layer.defaults}
            layer.state[parameter] = Adagrad([parameter], **options).state[parameter]
        elif isinstance(layer, SGD) and group.get("fused"):
            known = (layer.state.get(p, {}).get("momentum_buffer") for p in group["params"])
            if any(momentum is not None for momentum in known):
                layer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
