"""Describe a network's branches as plain data, so that a checkpoint loads into a new network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep import surgery, wrappers
from dyrep.base import Form, RepBlock, in_order
from dyrep.block import AbsorbedNorm, blocks, place_block
from dyrep.transaction import all_or_nothing

VERSION = 1


class Block(TypedDict):
    """A block: the path of its convolution, its branches, and whether kxk is fixed.

    `own`: the branches that belong to the network itself; left out if there are none. `widen`:
    channels inside 1x1_kxk, as a multiple of its input channels; left out if it is 1.
    """

    path: str
    branches: list[str]
    fixed: bool
    own: NotRequired[list[str]]
    widen: NotRequired[int]


class Structure(TypedDict):
    """The blocks of a network, outer before nested, ready for JSON.

    `form` is the form of all blocks, None without blocks. `biases` are the convolutions that became
    plain again and kept a bias. `absorbed` are the batch norms that static blocks replaced.
    """

    version: int
    form: Form | None
    blocks: list[Block]
    biases: list[str]
    absorbed: list[str]


def structure(model: nn.Module) -> Structure:
    """Return the description of a network's blocks."""
    there = blocks(model)
    found = [_described(path, block) for path, block in there.items()]
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


def _described(path: str, block: RepBlock) -> Block:
    described: Block = {"path": path, "branches": block.names, "fixed": block.fixed}
    if block.own:
        described["own"] = list(block.own)
    if block.widen != 1:
        described["widen"] = block.widen
    return described


def apply_structure(model: nn.Module, description: Mapping[str, Any]) -> None:
    """Give a network the blocks of another one, whose weights can then be loaded strictly.

    Without loading weights, the result is a network of the final structure with new weights, which
    can be trained from the start.

    Raises:
        ValueError: the model has blocks already, or the description is invalid, of another version,
            or names a path, a branch or a form that does not exist. The model is as it was.
    """
    surgery.refuse_wrapped(model)
    if not isinstance(description, Mapping):
        raise ValueError(f"a structure is a dict, not a {type(description).__name__}")
    if description.get("version") != VERSION:
        raise ValueError(f"structure of version {description.get('version')}, not {VERSION}")
    missing = [key for key in ("blocks", "absorbed", "biases") if key not in description]
    if missing:
        raise ValueError(f"this is not a structure: it has no {' and no '.join(missing)}")
    if blocks(model):
        raise ValueError("this model has blocks already; a structure goes onto a fresh one")
    before = dict(model.named_parameters())
    with all_or_nothing(model, values=False):
        _apply(model, description)
    wrappers.outdate(model, before)


def _apply(model: nn.Module, description: Mapping[str, Any]) -> None:
    form: Form = description.get("form") or "batchnorm"  # the only form in older descriptions
    for entry in description["blocks"]:
        if not isinstance(entry, Mapping) or not {"path", "branches", "fixed"} <= entry.keys():
            raise ValueError(f"a block of a structure has path, branches and fixed, not {entry}")
        path, names = entry["path"], entry["branches"]
        _conv(model, path)
        more = {key: entry[key] for key in ("own", "widen") if key in entry}
        block = place_block(model, path, names, entry["fixed"], form, **more)
        if block.names != in_order(names):
            missing = ", ".join(sorted({*names} - {*block.names}))
            raise ValueError(f"{path} cannot have {missing}: the structure is of another network")
    for path in description["absorbed"]:
        norm = _module(model, path)
        if not isinstance(norm, _BatchNorm):
            raise ValueError(f"{path} is a {type(norm).__name__} here, not a batch norm")
        surgery.replace(model, path, AbsorbedNorm())
    for path in description["biases"]:
        conv = _conv(model, path)
        conv.bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]))
        conv.bias_was_added = True  # type: ignore[assignment]


def _conv(model: nn.Module, path: str) -> nn.Conv2d:
    conv = _module(model, path)
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"{path} is a {type(conv).__name__} here, not a convolution")
    return conv


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"this model has no {path}: the structure is of another network") from None
