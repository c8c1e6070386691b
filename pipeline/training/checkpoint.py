"""Checkpoint files: written whole or not at all, checked before they are read, no code in them.

    checkpoints/step-00000110-e005-a003.safetensors   every tensor, by its place in the state; the
                                                      other values as JSON in the metadata
    checkpoints/step-00000110-e005-a003.json          its seal: size, SHA-256, what a choice needs;
                                                      written last: a file without is ignored
    checkpoints/best.json                             which of them validated best

The name holds the steps done, the epochs finished (before and after a change of structure the step
is the same) and the attempt that wrote it: an attempt that lives on after it was given up can
neither overwrite the file of a newer one nor be taken for newer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline import rundir
from pipeline.errors import UserError

SUFFIX = ".safetensors"
BEST = "best.json"


@dataclass(frozen=True)
class Facts:
    """What is told of a checkpoint without reading it.

    `boundary`: no epoch is under way. `rows`: of the history that it knows. `identity`: what it
    belongs to.
    """

    step: int
    epoch: int
    attempt: int
    world_size: int
    boundary: bool
    rows: int
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"step-{self.step:08d}-e{self.epoch:03d}-a{self.attempt:03d}{SUFFIX}"


@dataclass(frozen=True)
class Snapshot:
    """A state as it was at one moment, on the CPU; training may go on."""

    tree: Any
    tensors: dict[str, Tensor]


def snapshot(state: Any) -> Snapshot:
    """Copy a state: nested dicts, lists and tuples of tensors and plain values.

    Raises:
        TypeError: it holds a value of another type; names the place.
    """
    tensors: dict[str, Tensor] = {}
    return Snapshot(_pack(state, "", tensors), tensors)


def save(folder: Path, facts: Facts, taken: Snapshot) -> Path:
    """Write one checkpoint and seal it."""
    path = folder / facts.name
    with rundir.replacing(path) as temporary:
        save_file(taken.tensors, temporary, {"state": json.dumps(taken.tree)})
    content = {"bytes": path.stat().st_size, "sha256": rundir.sha256(path)}
    rundir.write_json(path.with_suffix(".json"), {**asdict(facts), **content})
    return path


def load(path: Path) -> Any:
    """Return the state in a file that `newest` found, on the CPU."""
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["state"])
        return _unpack(tree, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def facts(path: Path) -> Facts:
    """Return what is told of a file that `newest` found."""
    seal = rundir.read_json(path.with_suffix(".json"))
    return Facts(**{name: seal[name] for name in Facts.__dataclass_fields__})


def newest(
    folder: Path, refusal: Callable[[Facts], str | None]
) -> tuple[Path | None, list[str], list[str]]:
    """Find the newest checkpoint that is intact and not refused.

    Returns:
        Its path, if there is one; what is damaged among the newer ones; what was refused.
    """
    damaged: list[str] = []
    refused: list[str] = []
    for path in _by_age(folder):
        found, wrong = _examine(path)
        if wrong is not None:
            damaged.append(f"{path.name}: {wrong}")
        elif found and (reason := refusal(found)):
            refused.append(f"{path.name}: {reason}")
        elif found:
            return path, damaged, refused
    return None, damaged, refused


def mark_best(folder: Path, file: str, epoch: int, top1: float) -> None:
    """Note that a checkpoint validated best so far, if it did."""
    path = folder / BEST
    if not path.exists() or rundir.read_json(path)["top1"] < top1:
        rundir.write_json(path, {"file": file, "epoch": epoch, "top1": top1})


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep`, the best, and the newest between two epochs."""
    paths = _by_age(folder)
    kept = {path.name for path in paths[:keep]}
    if (folder / BEST).exists():
        kept.add(rundir.read_json(folder / BEST)["file"])
    between = [path.name for path in paths if (seal := _seal(path)) and seal["boundary"]]
    kept.update(between[:1])
    for path in paths:
        if path.name not in kept:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()


def _by_age(folder: Path) -> list[Path]:
    """Return all files, the newest attempt first, in it the latest state first."""

    def age(path: Path) -> tuple[str, str]:
        step, _, attempt = path.stem.rpartition("-a")
        return attempt, step

    return sorted(folder.glob(f"step-*{SUFFIX}"), key=age, reverse=True)


def _seal(path: Path) -> dict[str, Any] | None:
    """Return the seal of a file; None if there is none or it is damaged."""
    try:
        seal = rundir.read_json(path.with_suffix(".json"))
    except (OSError, UserError):
        return None
    complete = {*Facts.__dataclass_fields__, "bytes", "sha256"}
    return seal if isinstance(seal, dict) and seal.keys() == complete else None


def _examine(path: Path) -> tuple[Facts | None, str | None]:
    """Return what a file is and what is wrong with it; neither if its writing was cut off."""
    if not path.with_suffix(".json").exists():
        return None, None
    seal = _seal(path)
    if seal is None:
        return None, "its seal cannot be read"
    if path.stat().st_size != seal["bytes"]:
        return None, f"has {path.stat().st_size} bytes instead of {seal['bytes']}"
    if rundir.sha256(path) != seal["sha256"]:
        return None, "its content differs from its seal"
    try:
        with safe_open(path, framework="pt") as file:
            foreign = "state" not in (file.metadata() or {})
    except SafetensorError:
        foreign = True
    if foreign:
        return None, "is no checkpoint of this program"
    return facts(path), None


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; containers are labelled, so that tuples and int keys come back."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": place}
    inner = f"{place}." if place else ""
    if isinstance(value, dict):
        items = [[key, _pack(item, f"{inner}{key}", tensors)] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{inner}{index}", tensors) for index, item in enumerate(value)]
        return {type(value).__name__: items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}, which no checkpoint can hold")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
