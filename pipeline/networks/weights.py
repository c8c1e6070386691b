"""Read weights, and nothing else, from a safetensors file or a torch.save file."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.display.errors import UserError, gist
from pipeline.records import disk

KEY = "model.pretrained"
PICKLES = (b"PK\x03\x04", b"\x80")  # first bytes of torch.save files: today's, and before torch 1.6
INSIDE = (  # keys of the weights in checkpoints of training programs, averaged weights first
    "state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model",
)  # fmt: skip
AROUND = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
)  # prefixes that wrappers add to names


def read(path: Path, digest: str | None) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    Args:
        path: the path of the file.
        digest: the SHA-256 that the file must have; None: any.

    Raises:
        UserError: the file's SHA-256 differs, or it cannot be read, or it holds no weights.
    """
    try:
        if digest is not None and disk.sha256(path) != digest:
            raise UserError(
                f"{KEY}={path} has changed since the run was frozen; restore it, or "
                "choose another name= to train from the start"
            )
        with path.open("rb") as file:
            pickled = file.read(4).startswith(PICKLES)
        held = _pickled(path) if pickled else _safe(path)
    except OSError as error:
        raise UserError(
            f"{KEY}={path} cannot be read ({error.strerror or error}); restore it"
        ) from None
    if not held:
        raise UserError(f"{KEY}={path} holds no weights; give another file")
    for name, tensor in held.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{KEY}={path}: {name} holds values that are not finite; use another")
    return held


def _safe(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if "state" in (file.metadata() or {}):
                raise UserError(
                    f"{KEY}={path} is a checkpoint of a training; give the name of the run, which "
                    "stands for the weights that it ships"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{KEY}={path} is not a file of weights, or was cut off ({gist(error)}); give a "
            ".safetensors, .pth or .pt that is whole"
        ) from None


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([Namespace]):  # arguments of training programs
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{KEY}={path} holds more than weights, which is not read because it may be code "
            f"({_unsafe(error)}); save model.state_dict() alone, best as .safetensors"
        ) from None
    except Exception as error:  # torch raises many kinds of errors on damaged files
        raise UserError(
            f"{KEY}={path} cannot be read, or was cut off ({_first(error)}); give a whole file "
            "that torch.save made of model.state_dict()"
        ) from None
    return _unwrapped(path, loaded)


def _first(error: Exception) -> str:
    """Return the first sentence of torch's long message."""
    return gist(error).partition(". ")[0]


def _unsafe(error: UnpicklingError) -> str:
    """Return the name of the object that torch.load refused."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else "torch.load refuses it"


def _unwrapped(path: Path, loaded: Any) -> dict[str, Tensor]:
    """Return the tensors of a loaded checkpoint, from any of the usual keys."""
    where = loaded
    if isinstance(loaded, Mapping):
        where = next(
            (loaded[name] for name in INSIDE if isinstance(loaded.get(name), Mapping)), loaded
        )
    if not isinstance(where, Mapping):
        raise UserError(f"{KEY}={path} holds a {type(where).__name__} and no weights by name")
    held = {str(name): value for name, value in where.items() if isinstance(value, Tensor)}
    if not held:
        but = f", but {', '.join(map(str, list(where)[:3]))}" if where else ""
        raise UserError(f"{KEY}={path} holds no weights by name{but}; give a state_dict")
    return held


def named_as(state: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights by the names that the network uses, without the prefixes of wrappers."""
    while state and not own.keys() & state.keys():
        around = next((a for a in AROUND if all(name.startswith(a) for name in state)), None)
        if around is None:
            break
        state = {name.removeprefix(around): tensor for name, tensor in state.items()}
    return state
