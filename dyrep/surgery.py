"""Replacing a module of a network, with everything that hangs on its parameters following.

Parameters that stay the same object keep their state and their group. New ones join the group of
their nearest relative by name; the parameters of a group stand in the order of `model.parameters()`
afterwards, so the state of this optimizer loads into one that is built afresh on the same
structure.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adagrad, Optimizer


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where `path` points to; works for top-level names too."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    holder._modules[name] = module


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a wrapper that keeps references to the parameters or hides their names.

    Raises:
        TypeError: names the cure.
    """
    if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
        raise TypeError(
            "dyrep changes the parameters of the bare network: pass `ddp.module`, and after each "
            "adjust() that returned events write `ddp = dyrep.rewrap(ddp)`"
        )
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            "dyrep changes the bare network: pass the one you gave to torch.compile; "
            "the compiled one follows by itself"
        )


def bare(model: nn.Module) -> nn.Module:
    """Return what is inside wrappers that call it `module`: AveragedModel, DDP and the like."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    return model


def rewrap(ddp: DistributedDataParallel) -> DistributedDataParallel:
    """Return a new wrapper of the same settings and communication hooks around a changed network.

    Collective. Let go of the old wrapper (`ddp = dyrep.rewrap(ddp)`): it holds the buckets of the
    old parameters and would reduce gradients a second time.
    """
    hooks = list(ddp._comm_hooks)
    again = DistributedDataParallel(
        ddp.module,
        device_ids=ddp.device_ids,
        output_device=ddp.output_device,
        process_group=ddp.process_group,
        broadcast_buffers=ddp.broadcast_buffers,
        bucket_cap_mb=ddp.bucket_bytes_cap // 2**20,
        find_unused_parameters=ddp.find_unused_parameters,
        gradient_as_bucket_view=ddp.gradient_as_bucket_view,
        static_graph=ddp.static_graph,
    )
    for hook, state in hooks:
        again.register_comm_hook(state, hook)
    return again


def optimizes(optimizer: Optimizer, model: nn.Module) -> bool:
    """Return whether an optimizer holds any parameter of a model."""
    held = {p for group in optimizer.param_groups for p in group["params"]}
    return not held.isdisjoint(model.parameters())


def follow(
    optimizer: Optimizer,
    model: nn.Module,
    before: Mapping[str, Tensor],
    undecayed: Collection[Tensor] = (),
) -> None:
    """Make an optimizer that held parameters of a model hold those the model has now.

    A new parameter joins the group of the parameter of its kind (kernels and matrices, or vectors)
    that shares the longest part of its path, if the kernel it stands beside is optimized here.
    Parameters of other models are left alone.

    Args:
        optimizer: With per-parameter state.
        model: After the change.
        before: `dict(model.named_parameters())` from before it.
        undecayed: Parameters that must not decay. Where the group they would join has weight decay
            they get one like it without; beside a schedule, which cannot take another group, they
            join and a warning says so.
    """
    named = dict(model.named_parameters())
    known = set(before.values())
    gone = known - set(named.values())
    groups = optimizer.param_groups
    home = {p: group for group in groups for p in group["params"]}
    kernels = {name: p for name, p in before.items() if p.ndim > 1}
    for name, parameter in named.items():
        if parameter in known or _nearest(name, kernels) not in home:
            continue
        held = {n: p for n, p in before.items() if p in home}
        alike = {n: p for n, p in held.items() if (p.ndim > 1) == (parameter.ndim > 1)}
        group = home[_nearest(name, alike or held)]
        if group.get("weight_decay") and any(parameter is p for p in undecayed):
            group = _without_decay(optimizer, group)
        group["params"].append(parameter)
        if "param_names" in group:
            group["param_names"].append(name)
        _initial_state(optimizer, group, parameter)
    names = {parameter: name for name, parameter in named.items()}
    order = {parameter: index for index, parameter in enumerate(names)}
    for group in groups:
        old = dict(zip(group["params"], group.get("param_names", []), strict=False))
        kept = [p for p in group["params"] if p not in gone]
        group["params"][:] = sorted(kept, key=lambda p: order.get(p, -1))
        if old:
            group["param_names"] = [names.get(p, old[p]) for p in group["params"]]
    for old_parameter in gone:
        optimizer.state.pop(old_parameter, None)


def _without_decay(optimizer: Optimizer, like: dict[str, Any]) -> dict[str, Any]:
    """Return a group of the same options as `like` but without weight decay; add it if needed."""
    aside = ("params", "param_names", "weight_decay")
    options = {key: value for key, value in like.items() if key not in aside}
    for group in optimizer.param_groups:
        same = all(group.get(key) == value for key, value in options.items())
        if same and not group["weight_decay"]:
            return group
    if "initial_lr" in like:  # a schedule counts the groups when it is made
        warnings.warn(
            "the strengths of linear branches decay with the group they joined; give the optimizer "
            "a group with weight_decay=0 (for biases and norms) before its schedule is made",
            stacklevel=2,
        )
        return like
    names: dict[str, Any] = {"param_names": []} if "param_names" in like else {}
    optimizer.param_groups.append({**like, "params": [], **names, "weight_decay": 0.0})
    return optimizer.param_groups[-1]


def _nearest(name: str, candidates: Mapping[str, Tensor]) -> Tensor:
    """Return the parameter that shares the longest part of the path."""
    path = name.split(".")

    def shared(other: str) -> int:
        pairs = zip(path, other.split("."), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(path))

    return candidates[max(candidates, key=shared)]


def _initial_state(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> None:
    """Give a new parameter the state of one that was there from the start.

    Adagrad makes it when it is built. The others make it at the first step, but a fused SGD only
    for all parameters of a group or for none; a momentum of zero becomes the gradient there.
    """
    if isinstance(optimizer, SGD) and group["fused"] and group["momentum"]:
        states = [optimizer.state.get(p, {}) for p in group["params"]]
        if any(state.get("momentum_buffer") is not None for state in states):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    if isinstance(optimizer, Adagrad):
        options = {key: value for key, value in group.items() if key in optimizer.defaults}
        optimizer.state[parameter] = Adagrad([parameter], **options).state[parameter]
