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

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dyrep.optimizers import ParamGroup, initial_state, layers


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where `path` points to; works for top-level names too."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    holder._modules[name] = module


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def replaced(module: nn.Module) -> str | None:
    """Return what was put onto a module that its class alone does not do, or None."""
    if any(getattr(module, hooks) for hooks in HOOKS):
        return "hooks on it may change what it computes"
    methods = [
        n for n, value in vars(module).items() if callable(value) and hasattr(type(module), n)
    ]
    return f"its {methods[0]} was replaced" if methods else None


def hand_on_hooks(block: nn.Module, conv: nn.Module, copied: bool = False) -> None:
    """Let the conv that takes the place of a block have its hooks.

    Args:
        block: What had them.
        conv: What has them from here on.
        copied: Both stay, so what is removed from one is not removed from the other.
    """
    for name, value in vars(block).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and value:
            setattr(conv, name, value.copy() if copied else value)
    conv._is_full_backward_hook = block._is_full_backward_hook


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

    A new parameter joins the group of the kernel it stands beside, if that is optimized here. A
    vector does so if norms are in that group too; else it joins the norm of the nearest kin:
    in a group of the same options but weight decay, of the longest path shared, or else the next.
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
    kernels = [name for name, p in before.items() if p.ndim > 1]
    for name, parameter in named.items():
        beside = max(kernels, key=lambda kernel: _shared(name, kernel))
        if parameter in known or before[beside] not in home:
            continue
        kin = beside if parameter.ndim > 1 else _kin(model, beside, before, home)
        group = home[before[kin]]
        if group.get("weight_decay") and any(parameter is p for p in undecayed):
            group = _without_decay(optimizer, group)
        group["params"].append(parameter)
        if "param_names" in group:
            group["param_names"].append(name)
        initial_state(optimizer, group, parameter)
    names = {parameter: name for name, parameter in named.items()}
    order = {parameter: index for index, parameter in enumerate(names)}
    for group in groups:
        old = dict(zip(group["params"], group.get("param_names", []), strict=False))
        kept = [p for p in group["params"] if p not in gone]
        group["params"][:] = sorted(kept, key=lambda p: order.get(p, -1))
        if old:
            group["param_names"] = [names.get(p, old[p]) for p in group["params"]]
    for old_parameter in gone:
        for layer in layers(optimizer):
            layer.state.pop(old_parameter, None)


def _without_decay(optimizer: Optimizer, like: ParamGroup) -> ParamGroup:
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


def _kin(
    model: nn.Module,
    beside: str,
    before: Mapping[str, Tensor],
    home: Mapping[Tensor, ParamGroup],
) -> str:
    """Return the name of the vector whose group a new one beside a kernel joins."""
    gammas = {getattr(module, "weight", None) for module in model.modules()}
    held = [name for name, p in before.items() if p in home]
    vectors = [name for name in held if before[name].ndim <= 1]
    kin = [name for name in vectors if before[name] in gammas] or vectors or held
    own = home[before[beside]]
    here = [name for name in kin if home[before[name]] is own]
    place = {name: index for index, name in enumerate(before)}

    def nearness(name: str) -> tuple[bool, int, int, bool]:
        steps = place[name] - place[beside]
        alike = _options(home[before[name]]) == _options(own)
        return alike, _shared(name, beside), -abs(steps), steps > 0

    return max(here or kin, key=nearness)


def _options(group: ParamGroup) -> ParamGroup:
    """Return the settings of a group, without weight decay and what it is called."""
    aside = ("params", "param_names", "weight_decay")
    return {k: v for k, v in group.items() if k not in aside and not isinstance(v, str)}


def _shared(name: str, other: str) -> int:
    """Return how many parts of two paths are the same from the start."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(name.split(".")))
