"""Replace a module of a network, and update everything that refers to its parameters.

Parameters that stay the same object keep their optimizer state and their group. A new parameter
joins the group of its nearest relative by name. Afterwards the parameters of a group are in the
order of `model.parameters()`, so the state loads into an optimizer that is built on a network of
the same structure.
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
    """Set the module at `path`, which may be a top-level name."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    holder._modules[name] = module


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def replaced(module: nn.Module) -> str | None:
    """Return the difference of a module from its class (hooks, replaced methods, …), or None."""
    if any(getattr(module, hooks) for hooks in HOOKS):
        return "hooks on it may change what it computes"
    methods = [
        n for n, value in vars(module).items() if callable(value) and hasattr(type(module), n)
    ]
    return f"its {methods[0]} was replaced" if methods else None


def hand_on_hooks(block: nn.Module, conv: nn.Module, copied: bool = False) -> None:
    """Move the hooks of a block to the conv that replaces it.

    Args:
        block: The module with the hooks.
        conv: The module that gets them.
        copied: Whether to copy the hooks, so that removing one from either module leaves it on the
            other.
    """
    for name, value in vars(block).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and value:
            setattr(conv, name, value.copy() if copied else value)
    conv._is_full_backward_hook = block._is_full_backward_hook


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a wrapped model, whose wrapper refers to the parameters or changes their names.

    Raises:
        TypeError: the model is wrapped; the message names the cure.
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
    """Return the model inside wrappers with an attribute `module`: AveragedModel, DDP, …."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    return model


def rewrap(ddp: DistributedDataParallel) -> DistributedDataParallel:
    """Return a new DDP around a changed network, with the old settings and communication hooks.

    Collective. Drop the old wrapper (`ddp = dyrep.rewrap(ddp)`), because it holds the buckets of
    the old parameters and would reduce gradients a second time.
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
    """Whether an optimizer holds any parameter of a model."""
    held = {p for group in optimizer.param_groups for p in group["params"]}
    return not held.isdisjoint(model.parameters())


def follow(
    optimizer: Optimizer,
    model: nn.Module,
    before: Mapping[str, Tensor],
    undecayed: Collection[Tensor] = (),
) -> None:
    """Update the parameters of an optimizer after a change of its model.

    A new parameter joins the group of the kernel beside it, if that kernel is in this optimizer. A
    vector does so only if that group also holds norms; otherwise it joins the group of the nearest
    norm: preferably one with the same options except weight decay, then with the longest common
    path, then the next one. Parameters of other models are left alone.

    Args:
        optimizer: An optimizer with state per parameter.
        model: The model after the change.
        before: `dict(model.named_parameters())` before the change.
        undecayed: Parameters that must not decay. If their group has weight decay, they join a
            group with the same options without it, a new one if there is none. With a schedule,
            which cannot follow a new group, they join the group with weight decay instead, and a
            warning says so.
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
    order = {parameter: number for number, parameter in enumerate(names)}
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
    """Return a group with the options of `like` but without weight decay; add it if needed."""
    aside = ("params", "param_names", "weight_decay")
    options = {key: value for key, value in like.items() if key not in aside}
    for group in optimizer.param_groups:
        same = all(group.get(key) == value for key, value in options.items())
        if same and not group["weight_decay"]:
            return group
    if "initial_lr" in like:  # a schedule is fixed to the groups that it began with
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
    """Return the name of the vector whose group a new vector beside a kernel joins."""
    gammas = {getattr(module, "weight", None) for module in model.modules()}
    held = [name for name, p in before.items() if p in home]
    vectors = [name for name in held if before[name].ndim <= 1]
    kin = [name for name in vectors if before[name] in gammas] or vectors or held
    own = home[before[beside]]
    here = [name for name in kin if home[before[name]] is own]
    index = {name: number for number, name in enumerate(before)}

    def nearness(name: str) -> tuple[bool, int, int, bool]:
        steps = index[name] - index[beside]
        alike = _options(home[before[name]]) == _options(own)
        return alike, _shared(name, beside), -abs(steps), steps > 0

    return max(here or kin, key=nearness)


def _options(group: ParamGroup) -> ParamGroup:
    """Return the settings of a group, without weight decay and without texts such as its name."""
    aside = ("params", "param_names", "weight_decay")
    return {k: v for k, v in group.items() if k not in aside and not isinstance(v, str)}


def _shared(name: str, other: str) -> int:
    """Return the number of leading components that two paths share."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(name.split(".")))
