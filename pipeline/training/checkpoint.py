"""Write, verify and read checkpoint files: atomic, sealed with a hash, and free of code.

    checkpoints/step-00000110-e005-a003.safetensors   all tensors, by their path in the state; other
                                                      values as JSON in the metadata
    checkpoints/step-00000110-e005-a003.json          the seal: size, SHA-256, and `CheckpointInfo`;
                                                      written last: a file without a seal is ignored
    checkpoints/best.json                             the checkpoint with the best validation

The file name holds the step, the number of finished epochs and the attempt. The epochs are needed
because the step is the same before and after a change of structure. The attempt is needed so that
an older attempt that still runs cannot overwrite the file of a newer one, and does not count as
newer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config.base import Values
from pipeline.display.errors import UserError
from pipeline.records import disk, packing, rundir

SUFFIX = ".safetensors"
BEST = "best.json"
NAME = re.compile(rf"step-(\d+)-e(\d+)-a(\d+){re.escape(SUFFIX)}")


@dataclass(frozen=True)
class CheckpointInfo:
    """The facts about a checkpoint that are known without reading it.

    `boundary`: whether it lies between two epochs. `history`, `growth`: numbers of rows of these
    files. `identity`: the settings and data that it belongs to.
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
        """The name of the checkpoint's file."""
        return f"step-{self.step:08d}-e{self.epoch:03d}-a{self.attempt:03d}{SUFFIX}"


@dataclass(frozen=True)
class Seal(CheckpointInfo):
    """The `.json` beside a checkpoint: its facts, and the size and hash of the file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Best:
    """The checkpoint with the best validation: its file, its epoch and its accuracy in percent."""

    file: str
    epoch: int
    top1: float


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state on the CPU; training may continue meanwhile."""

    tree: Any
    tensors: dict[str, Tensor]


def snapshot(state: Any) -> Snapshot:
    """Copy a state: nested dicts, lists and tuples of tensors and plain values.

    Raises:
        TypeError: the state holds a value of another type; the message names its path.
    """
    return Snapshot(*packing.pack(state))


def save(folder: Path, info: CheckpointInfo, taken: Snapshot) -> Path:
    """Write one checkpoint and seal it."""
    path = folder / info.name
    folder.mkdir(exist_ok=True)
    with disk.replacing(path) as temporary:
        save_file(taken.tensors, temporary, {"state": json.dumps(taken.tree)})
    seal = Seal(**vars(info), bytes=path.stat().st_size, sha256=disk.sha256(path))
    rundir.write_json(path.with_suffix(".json"), vars(seal), settings=seal.identity)
    return path


def load(path: Path) -> Any:
    """Return the state in a file that `newest` found, on the CPU."""
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["state"])
        return packing.unpack(tree, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def info(path: Path) -> CheckpointInfo:
    """Return the facts of a file that `newest` found."""
    seal = rundir.read_json(path.with_suffix(".json"))
    return CheckpointInfo(**{field.name: seal[field.name] for field in fields(CheckpointInfo)})


@dataclass(frozen=True)
class PassedOver:
    """A newer checkpoint that was skipped, and why."""

    path: Path
    reason: str
    damaged: bool

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


def newest(
    folder: Path,
    damage: Callable[[CheckpointInfo], str | None],
    refusal: Callable[[CheckpointInfo], str | None],
) -> tuple[Path | None, list[PassedOver]]:
    """Return the newest checkpoint that is intact and not refused, and the skipped newer ones.

    Args:
        folder: the folder of the checkpoints.
        damage: returns why an intact file is unusable beside the other files, or None.
        refusal: returns why an undamaged checkpoint does not fit this training, or None.
    """
    passed_over: list[PassedOver] = []
    for path in _by_age(folder):
        if not path.with_suffix(".json").exists():  # writing it was interrupted
            continue
        wrong = _damage(path) or damage(info(path))
        reason = wrong or refusal(info(path))
        if reason is None:
            return path, passed_over
        passed_over.append(PassedOver(path, reason, damaged=wrong is not None))
    return None, passed_over


def tidy(folder: Path) -> None:
    """Remove partial files of killed attempts."""
    for leftover in folder.glob(".step-*"):
        leftover.unlink(missing_ok=True)


def unseal(passed_over: list[PassedOver]) -> None:
    """Remove the seals of skipped checkpoints, so that no later attempt resumes from them."""
    for item in passed_over:
        item.path.with_suffix(".json").unlink(missing_ok=True)


def mark_best(folder: Path, file: str, epoch: int, top1: float) -> None:
    """Record a checkpoint as the best, if its validation is the best so far."""
    best = _best(folder)
    if best is None or best.top1 < top1:
        rundir.write_json(folder / BEST, vars(Best(file, epoch, top1)))


def best(folder: Path) -> Path:
    """Return the file of the checkpoint with the best validation.

    Raises:
        UserError: that checkpoint is damaged or missing.
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
    """Remove all checkpoints but the newest `keep`, the best, and the newest between two epochs."""
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
    """Return the record of the best checkpoint; None if it is missing, damaged or outdated."""
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
    """Return all files, newest first: by attempt, then by step and epochs."""
    found = {}
    for path in folder.glob(f"step-*{SUFFIX}"):
        if match := NAME.fullmatch(path.name):  # others are copies that somebody has made
            step, epoch, attempt = map(int, match.groups())
            found[path] = attempt, step, epoch
    return sorted(found, key=lambda path: found[path], reverse=True)


def _seal(path: Path) -> Seal | None:
    """Return the seal of a file; None if it is missing or damaged."""
    try:
        seal = rundir.read_json(path.with_suffix(".json"))
    except (OSError, UserError):
        return None
    complete = {field.name for field in fields(Seal)}
    return Seal(**seal) if isinstance(seal, dict) and seal.keys() == complete else None


def _damage(path: Path) -> str | None:
    """Return the damage of a file that has a seal; None if it is intact."""
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
    return None if ours else "is not a checkpoint of this program"
