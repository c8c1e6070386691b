"""Open any file with a network: exported files, fused or trained weights, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, PositiveFloat, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import dyrep
from pipeline.config import Config, sections
from pipeline.config.base import Target
from pipeline.config.model import Model
from pipeline.custom.code import enable
from pipeline.data import preprocess
from pipeline.data.shards import MODES, Manifest
from pipeline.display.errors import UserError
from pipeline.networks import architectures
from pipeline.records import rundir, store
from pipeline.records.schemas import Question
from pipeline.stages import earlier
from pipeline.stages.export import runtime
from pipeline.stages.export.runtime import CARD
from pipeline.training import checkpoint

DAMAGE = (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError)
Size = Annotated[int, Field(ge=1, le=4096)]  # side of an image, pixels


class Preprocess(BaseModel):
    """The fields of `preprocess.describe` that are used here."""

    resize: Size
    image_size: Size
    mean: Annotated[list[float], Field(min_length=1, max_length=3)]
    std: Annotated[list[PositiveFloat], Field(min_length=1, max_length=3)]
    classes: Annotated[list[str], Field(min_length=1)]

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.mean)

    @model_validator(mode="after")
    def _is_of_one_or_three_channels(self) -> Self:
        if not len(self.std) == self.channels in MODES:
            raise ValueError(
                f"a mean of {self.channels} and a std of {len(self.std)} channels; give 1 or 3"
            )
        return self


class Card(BaseModel):
    """The fields of a model card that are used here."""

    preprocess: Preprocess
    architecture: Model | None = None


@dataclass(frozen=True)
class Opened:
    """A network, and its card's description of images and classes."""

    network: Callable[[Tensor], Tensor]
    preprocess: Preprocess


def open_file(path: Path, trust: bool = False) -> Opened:
    """Return the network in a file; its card is read first, which runs no code of the file.

    Args:
        path: an exported file, weights, or a checkpoint.
        trust: whether code in the file may run.

    Raises:
        UserError: the file is missing, damaged or not trusted, or its runtime is not installed.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'no regular file' if path.exists() else 'no such file'}")
    if path.suffix == ".safetensors":
        return _weights(path, trust)
    if not path.name.endswith(tuple(runtime.KINDS)):
        known = ", ".join((".safetensors", *runtime.KINDS))
        raise UserError(f"{path}: neither weights nor an exported network; known are {known}")
    try:
        card = _read_card(path, runtime.card(path))
        return Opened(runtime.load(path, trust=trust).network, card.preprocess)
    except (ValueError, ModuleNotFoundError, runtime.Elsewhere, runtime.Untrusted) as error:
        raise UserError(str(error)) from error


def _read_card(path: Path, text: str) -> Card:
    try:
        return Card.model_validate(json.loads(text))
    except ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(map(str, first["loc"]))
        wrong = f"{where}: {first['msg']}" if where else first["msg"]
    except (ValueError, RecursionError) as error:
        wrong = str(error)
    raise UserError(
        f"{path} has no model card that can be used ({wrong}); export it with stage=fuse"
    )


def _weights(path: Path, trust: bool) -> Opened:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if CARD in metadata:
            return _fused(path, _read_card(path, metadata[CARD]), trust)
        if "state" in metadata:
            return _trained(path.parents[1], *_checkpoint(path), trust)
        structure = rundir.read_json(path.parent / "structure.json")
        return _trained(path.parent, load_file(path), structure, trust)
    except DAMAGE as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({why}); write it again with its stage") from None
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or path}: no such file; trained weights are read where their stage "
            "left them"
        ) from None


def _fused(path: Path, card: Card, trust: bool) -> Opened:
    if card.architecture is None:
        raise UserError(
            f"the model card of {path} names no architecture; export it with stage=fuse"
        )
    network = _built(path.parent, card.architecture, card.preprocess, trust)
    return Opened(_loaded(path, network, load_file(path)), card.preprocess)


def _checkpoint(path: Path) -> tuple[dict[str, Tensor], Any]:
    saved = checkpoint.load(path)
    if saved["ema"] is None:
        return saved["model"], saved["structure"]
    prefix = "module."  # torch keeps averages in a wrapper
    averaged = {k.removeprefix(prefix): v for k, v in saved["ema"].items() if k.startswith(prefix)}
    return averaged, saved["structure"]


def _built(stage: Path, model: Model, spec: Preprocess, trust: bool) -> nn.Module:
    """Build the network of a stage; a user's code, which the card only names, must be trusted.

    Raises:
        UserError: the code is not trusted, or is not below the root of the stage.
    """
    if isinstance(model, Target):
        if not trust:
            raise UserError(
                f"the network of {stage} is code that its card names, {model.target}; "
                "--trust runs it, as you"
            )
        enable(model, stage.resolve().parents[1])
    return architectures.build(model, len(spec.classes), spec.channels)


def _trained(stage: Path, state: dict[str, Tensor], structure: Any, trust: bool) -> Opened:
    """Build a network with its branches from the question of its stage."""
    question = store.read(Question, stage)
    config: Config = sections({name: question.config[name] for name in ("data", "model")})
    prep = rundir.stage_dir(stage.resolve().parents[1], "prep", question.parents["prep"])
    manifest = Manifest.load(prep / "data")
    spec = Preprocess.model_validate(preprocess.describe(config.data, manifest))
    network = _built(stage, config.model, spec, trust)
    dyrep.apply_structure(network, structure)
    return Opened(_loaded(stage, network, state), spec)


def _loaded(path: Path, network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    try:
        return earlier.load_folded(network, state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is of another architecture: {reason}") from None
