"""Find which convolutions of a network can take branches, and why the others cannot."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

from dyrep import surgery
from dyrep.branches import WindowConv
from dyrep.linear_branches import LinearDepthwise, LinearWindow

OTHER_CONVS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def warn_of_nothing(left: Mapping[str, str]) -> None:
    """Warn that no conv of a network takes branches, and say why."""
    reasons = "; ".join(f"{path or 'the model'}: {reason}" for path, reason in left.items())
    warnings.warn(
        "there is nothing to do for dyrep here: "
        + (reasons or "the network has no Conv2d larger than 1x1"),
        stacklevel=3,
    )


def convs(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Return the convs that may become blocks: those of the network, and kxk convs in blocks."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and max(module.kernel_size) > 1
        and not _is_part_of_kernel(model.get_submodule(path.rpartition(".")[0]))
    ]


def _is_part_of_kernel(parent: nn.Module) -> bool:
    """Whether the parent of a conv is a 1xk, kx1 or dw_1x1 branch; such convs take no branches."""
    if isinstance(parent, LinearDepthwise):
        return True
    if not isinstance(parent, (WindowConv, LinearWindow)):
        return False
    return parent.size != parent.geometry.kernel_size


def unfit_convs(model: nn.Module) -> dict[str, str]:
    """Return the convs that must not get branches, with the reason."""
    everything = [m for _, m in model.named_modules(remove_duplicate=False)]
    paths = Counter(everything)
    owners = Counter(p for m in set(everything) for p in m._parameters.values())
    found: dict[str, str] = {}
    scripted: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if path.rpartition(".")[0] not in scripted:
                found[path] = "a ScriptModule; branches go onto the network before torch.jit"
            scripted.add(path)
        if isinstance(module, OTHER_CONVS):
            found[path] = f"a {type(module).__name__}: branches are for Conv2d alone"
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            shared = paths[module] > 1 or any(
                owners[p] > 1 for p in module._parameters.values() if p is not None
            )
            if not path:
                found[path] = "it is the model itself; wrap it in nn.Sequential"
                continue
            reason = "shared between paths" if shared else _unfit(module)
            if reason:
                found[path] = reason
    return found


def _unfit(conv: nn.Conv2d) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"a subclass of Conv2d ({type(conv).__name__}) may compute something else"
    if changed := surgery.replaced(conv):
        return changed
    if not conv.weight.requires_grad:
        return "frozen"
    return None
