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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config.base import Values
from pipeline.errors import UserError
from pipeline.records import disk, packing, rundir

SUFFIX = ".safetensors"
BEST = "best.json"


@dataclass(frozen=True)
class Facts:
    """What is told of a checkpoint without reading it.

    `boundary`: no epoch is under way. `history`, `growth`: the rows it knows of them. `identity`:
    what it belongs to.
    """

    step: int
    epoch: int
    attempt: int
    world_size: int
    boundary: bool
    history: int
    growth: int
    identity: Values

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"step-{self.step:08d}-e{self.epoch:03d}-a{self.attempt:03d}{SUFFIX}"


@dataclass(frozen=True)
class Seal(Facts):
    """What the `.json` beside a checkpoint says: its facts, and the size and hash of the file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Best:
    """The checkpoint that validated best: its file, its epoch and its accuracy in percent."""

    file: str
    epoch: int
    top1: float


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
    return Snapshot(*packing.pack(state))


def save(folder: Path, facts: Facts, taken: Snapshot) -> Path:
    """Write one checkpoint and seal it."""
    path = folder / facts.name
    folder.mkdir(exist_ok=True)
    with disk.replacing(path) as temporary:
        save_file(taken.tensors, temporary, {"state": json.dumps(taken.tree)})
    seal = Seal(**vars(facts), bytes=path.stat().st_size, sha256=disk.sha256(path))
    rundir.write_json(path.with_suffix(".json"), vars(seal))
    return path


def load(path: Path) -> Any:
    """Return the state in a file that `newest` found, on the CPU."""
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["state"])
        return packing.unpack(tree, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def facts(path: Path) -> Facts:
    """Return what is told of a file that `newest` found."""
    seal = rundir.read_json(path.with_suffix(".json"))
    return Facts(**{field.name: seal[field.name] for field in fields(Facts)})


@dataclass(frozen=True)
class PassedOver:
    """A checkpoint that is newer than the one found, and why it is not that."""

    path: Path
    reason: str
    damaged: bool

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


def newest(
    folder: Path,
    damage: Callable[[Facts], str | None],
    refusal: Callable[[Facts], str | None],
) -> tuple[Path | None, list[PassedOver]]:
    """Find the newest checkpoint that is intact and not refused; tell what was passed over.

    Args:
        folder: Of the checkpoints.
        damage: What is wrong with one that is intact in itself.
        refusal: Why one that is intact will not do.
    """
    passed_over: list[PassedOver] = []
    for path in _by_age(folder):
        if not path.with_suffix(".json").exists():  # its writing was cut off
            continue
        wrong = _damage(path) or damage(facts(path))
        reason = wrong or refusal(facts(path))
        if reason is None:
            return path, passed_over
        passed_over.append(PassedOver(path, reason, damaged=wrong is not None))
    return None, passed_over


def tidy(folder: Path) -> None:
    """Remove what killed attempts left half written."""
    for leftover in folder.glob(".step-*"):
        leftover.unlink(missing_ok=True)


def unseal(passed_over: list[PassedOver]) -> None:
    """Make sure that no later attempt takes up what this one passed over and writes anew."""
    for item in passed_over:
        item.path.with_suffix(".json").unlink(missing_ok=True)


def mark_best(folder: Path, file: str, epoch: int, top1: float) -> None:
    """Note that a checkpoint validated best so far, if it did."""
    best = _best(folder)
    if best is None or best.top1 < top1:
        rundir.write_json(folder / BEST, vars(Best(file, epoch, top1)))


def best(folder: Path) -> Path:
    """Return the file of the checkpoint that validated best.

    Raises:
        UserError: it is damaged or gone.
    """
    noted = _best(folder)
    path = folder / (noted.file if noted else BEST)
    if wrong := _damage(path) if noted else "names no checkpoint that is there":
        raise UserError(
            f"{path}: {wrong}, and the best epoch is to be shipped; train again with "
            "again=[train], or ship the last with train.ship=last"
        )
    return path


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep`, the best, and the newest between two epochs."""
    paths = _by_age(folder)
    kept = {path.name for path in paths[:keep]}
    if best := _best(folder):
        kept.add(best.file)
    between = [path.name for path in paths if (seal := _seal(path)) and seal.boundary]
    kept.update(between[:1])
    for path in paths:
        if path.name not in kept:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _best(folder: Path) -> Best | None:
    """Return what is noted of the best; None where nothing is, or nothing that helps."""
    try:
        best = rundir.read_json(folder / BEST)
    except (OSError, UserError):
        return None
    names = {field.name for field in fields(Best)}
    if not isinstance(best, dict) or not names <= best.keys():
        return None
    found = Best(**{name: best[name] for name in names})
    return found if (folder / found.file).exists() else None


def _by_age(folder: Path) -> list[Path]:
    """Return all files, the newest attempt first, in it the latest state first."""

    def age(path: Path) -> tuple[int, int, int]:
        _, step, epoch, attempt = path.stem.split("-")
        return int(attempt[1:]), int(step), int(epoch[1:])

    return sorted(folder.glob(f"step-*-e*-a*{SUFFIX}"), key=age, reverse=True)


def _seal(path: Path) -> Seal | None:
    """Return the seal of a file; None if there is none or it is damaged."""
    try:
        seal = rundir.read_json(path.with_suffix(".json"))
    except (OSError, UserError):
        return None
    complete = {field.name for field in fields(Seal)}
    return Seal(**seal) if isinstance(seal, dict) and seal.keys() == complete else None


def _damage(path: Path) -> str | None:
    """Return what is wrong with a file that has a seal."""
    seal = _seal(path)
    if seal is None:
        return "its seal cannot be read"
    if path.stat().st_size != seal.bytes:
        return f"has {path.stat().st_size} bytes instead of {seal.bytes}"
    if disk.sha256(path) != seal.sha256:
        return "its content differs from its seal"
    try:
        with safe_open(path, framework="pt") as file:
            ours = "state" in (file.metadata() or {})
    except SafetensorError:
        ours = False
    return None if ours else "is no checkpoint of this program"
