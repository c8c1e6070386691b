"""Replacing a module of a network, with the optimizer following.

Parameters that stay the same object keep their state and their group. New ones join the group of
their kind; the parameters of a group stand in the order of `model.parameters()` afterwards, so the
state of this optimizer loads into one that is built afresh on the same structure.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where `path` points to; works for top-level names too."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    holder._modules[name] = module


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a wrapper that keeps references to the parameters.

    Raises:
        TypeError: names the cure.
    """
    if isinstance(model, DistributedDataParallel):
        raise TypeError(
            "dyrep changes the parameters of the bare network: pass `ddp.module`, and wrap it in "
            "DistributedDataParallel again after each adjust()"
        )


def follow(optimizer: Optimizer, model: nn.Module) -> None:
    """Make the optimizer hold exactly the parameters of the model it should hold.

    A new parameter of two or more dimensions joins the group of the largest such parameters, one
    of fewer dimensions the group that holds only such parameters, if there is one.
    """
    named = dict(model.named_parameters())
    order = {parameter: index for index, parameter in enumerate(named.values())}
    groups = optimizer.param_groups
    place = _placing(groups)
    held = {parameter for group in groups for parameter in group["params"]}
    for group in groups:
        group["params"] = [p for p in group["params"] if p in order]
    for parameter in named.values():
        if parameter.requires_grad and parameter not in held:
            groups[place(parameter)]["params"].append(parameter)
    names = {parameter: name for name, parameter in named.items()}
    for group in groups:
        group["params"].sort(key=order.__getitem__)
        if "param_names" in group:
            group["param_names"] = [names[p] for p in group["params"]]
    for gone in [parameter for parameter in optimizer.state if parameter not in order]:
        del optimizer.state[gone]


def _placing(groups: list[dict[str, list[Tensor]]]) -> Callable[[Tensor], int]:
    """Return which group a new parameter belongs to, judged by what the groups hold now."""
    small = [all(p.ndim <= 1 for p in g["params"]) and len(g["params"]) > 0 for g in groups]
    convs = [sum(p.numel() for p in g["params"] if p.ndim > 1) for g in groups]
    weights = convs.index(max(convs))
    vectors = small.index(True) if any(small) else weights
    return lambda parameter: weights if parameter.ndim > 1 else vectors


def move_state(optimizer: Optimizer, old: Tensor | None, new: Tensor) -> None:
    """Let `new` take over the momentum of `old`, whose part it now plays."""
    if old is not None and old in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(old)
