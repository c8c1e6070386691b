"""Opening whatever holds a network: exported files, fused or trained weights, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import dyrep
from pipeline import models, networks, rundir
from pipeline.config import Config, sections
from pipeline.config.model import Model
from pipeline.data import preprocess
from pipeline.data.shards import Manifest
from pipeline.errors import UserError
from pipeline.export import runtime
from pipeline.export.runtime import CARD
from pipeline.training import checkpoint


@dataclass(frozen=True)
class Opened:
    """A network, and what `preprocess.describe` tells of its images and classes."""

    network: Callable[[Tensor], Tensor]
    preprocess: dict[str, Any]


def open_file(path: Path) -> Opened:
    """Return the network in a file.

    Raises:
        UserError: there is none, it is damaged, or what runs it is not installed.
    """
    if path.suffix == ".safetensors":
        return _weights(path)
    try:
        loaded = runtime.load(path)
    except (ValueError, ModuleNotFoundError, runtime.Elsewhere) as error:
        raise UserError(str(error)) from error
    told = json.loads(loaded.card).get("preprocess")
    if told is None:
        raise UserError(f"{path} has no model card; export it with stage=fuse")
    return Opened(loaded.network, told)


def _weights(path: Path) -> Opened:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if CARD in metadata:
            return _fused(path, json.loads(metadata[CARD]))
        if "state" in metadata:
            return _trained(path.parents[1], *_checkpoint(path))
        structure = rundir.read_json(path.parent / "structure.json")
        return _trained(path.parent, load_file(path), structure)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); make it anew with its stage") from None
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or path}: no such file; trained weights are read where their stage "
            "left them"
        ) from None


def _fused(path: Path, card: dict[str, Any]) -> Opened:
    model: Any = TypeAdapter(Model).validate_python(card["architecture"])
    network = models.build(model, len(card["preprocess"]["classes"]))
    return Opened(_loaded(path, network, load_file(path)), card["preprocess"])


def _checkpoint(path: Path) -> tuple[dict[str, Tensor], Any]:
    saved = checkpoint.load(path)
    if saved["ema"] is None:
        return saved["model"], saved["structure"]
    prefix = "module."  # averages are kept in a wrapper of torch
    averaged = {k.removeprefix(prefix): v for k, v in saved["ema"].items() if k.startswith(prefix)}
    return averaged, saved["structure"]


def _trained(stage: Path, state: dict[str, Tensor], structure: Any) -> Opened:
    """Build a network with its branches from the question its stage answers."""
    question = yaml.safe_load((stage / rundir.STAGE).read_text())
    config: Config = sections({name: question["config"][name] for name in ("data", "model")})
    prep = rundir.stage_dir(stage.resolve().parents[1], "prep", question["parents"]["prep"])
    manifest = Manifest.load(prep / "data")
    network = models.build(config.model, len(manifest.classes))
    dyrep.apply_structure(network, structure)
    return Opened(_loaded(stage, network, state), preprocess.describe(config.data, manifest))


def _loaded(path: Path, network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    try:
        return networks.take(network, state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is of another architecture: {reason}") from None
