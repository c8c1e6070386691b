"""Divide a network into blocks and layers, in the order from images to scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from dyrep.block import RepBlock

LISTS = (nn.Sequential, nn.ModuleList)  # exactly these; an instance of a subclass is a block


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost blocks of a network, in order.

    A block is a convolution with branches, or a module that has children and is an entry of an
    `nn.Sequential` or `nn.ModuleList`.
    """
    for child in model.children():
        listed = type(model) in LISTS and type(child) not in LISTS and any(child.children())
        if listed or isinstance(child, RepBlock):
            yield child
        else:
            yield from blocks(child)


def depths(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, by its name; layer 0 is next to the images.

    Timm's networks define their layers (`group_matcher`). In other networks a layer is a block, or
    a convolution or linear layer outside of blocks, with the norm and biases that follow it. The
    branches of a convolution belong to its layer.
    """
    found: dict[str, int] = {}
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        found.update(group_parameters(model, matcher(coarse=False), reverse=True))
        return found
    inside = {module: path for path, module in model.named_modules()}
    units = {inside[block] for block in blocks(model)}
    layer, unit = -1, ""
    for name, parameter in model.named_parameters():
        here = _unit(name, units) or (name.rpartition(".")[0] if parameter.ndim > 1 else unit)
        layer += here != unit or layer < 0
        unit, found[name] = here, layer
    return found


def _unit(name: str, units: set[str]) -> str | None:
    """Return the path in `units` that contains a parameter; None if there is none."""
    keys = name.split(".")
    paths = (".".join(keys[:count]) for count in range(1, len(keys)))
    return next((path for path in paths if path in units), None)
