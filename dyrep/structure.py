"""Which branches a network has, as plain data, so that a checkpoint loads into a fresh network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dyrep import surgery
from dyrep.base import Form
from dyrep.block import AbsorbedNorm, blocks, place_block

VERSION = 1


def structure(model: nn.Module) -> dict[str, Any]:
    """Return the blocks of a network, outer before nested, ready for JSON.

    `form` is that of all blocks, None without any; `biases` are the convs that became plain again
    and brought a bias home; `absorbed` the batch norms that static blocks replaced.
    """
    there = blocks(model)
    found = [
        {"path": path, "branches": block.names, "fixed": block.fixed}
        for path, block in there.items()
    ]
    form = next((block.form for block in there.values()), None)
    biases = [
        path for path, module in model.named_modules() if getattr(module, "bias_was_added", False)
    ]
    absorbed = [path for path, module in model.named_modules() if isinstance(module, AbsorbedNorm)]
    return {
        "version": VERSION,
        "form": form,
        "blocks": found,
        "biases": biases,
        "absorbed": absorbed,
    }


def apply_structure(model: nn.Module, description: dict[str, Any]) -> None:
    """Give a network the blocks another one had; weights are loaded afterwards, strictly.

    Without loading weights it is a network of the final structure with fresh weights, to be trained
    from the start.

    Raises:
        ValueError: the model has blocks already, or the description is of another version or
            names a path, a branch or a form that there is not.
    """
    surgery.refuse_wrapped(model)
    if description.get("version") != VERSION:
        raise ValueError(f"structure of version {description.get('version')}, not {VERSION}")
    if blocks(model):
        raise ValueError("this model has blocks already; a structure goes onto a fresh one")
    form: Form = description.get("form") or "batchnorm"  # what there was before forms had names
    for entry in description["blocks"]:
        _conv(model, entry["path"])
        place_block(model, entry["path"], entry["branches"], entry["fixed"], form)
    for path in description["absorbed"]:
        surgery.replace(model, path, AbsorbedNorm())
    for path in description["biases"]:
        conv = _conv(model, path)
        conv.bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]))
        conv.bias_was_added = True  # type: ignore[assignment]


def _conv(model: nn.Module, path: str) -> nn.Conv2d:
    try:
        conv = model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"this model has no {path}: the structure is of another network") from None
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"{path} is a {type(conv).__name__} here, not a convolution")
    return conv
