"""Choose the checkpoint to resume from, and check that it belongs to this training.

DALI silently restores a position that was saved with other data, another batch size or another
number of processes. So the settings and data of a checkpoint are compared before it is used.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config import flatten, values_of
from pipeline.config.base import Values
from pipeline.contract.stage import Context
from pipeline.contract.world import World
from pipeline.display.errors import UserError
from pipeline.records import disk, rundir
from pipeline.records.provenance import DALI, versions
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointInfo


def identity(context: Context) -> Values:
    """Return the facts that a usable checkpoint must share: settings, data, version of DALI."""
    config = values_of(context.config, context.stage.reads)
    data = disk.sha256(context.parents["prep"] / "data" / rundir.MANIFEST)
    return {**flatten(config), "prepared data": data[:12], "DALI": versions().get(DALI)}


def find(context: Context, world: World, own: Values) -> Path | None:
    """Return the checkpoint to resume from, or None to begin; equal on every process.

    With another number of processes only a checkpoint between two epochs can be used: in the middle
    of an epoch each process has its own position in the data.

    Raises:
        UserError: the checkpoints belong to another training, or none of them is intact.
    """
    folder = context.dir / "checkpoints"
    name = world.from_main(lambda: _choose(folder, context, world.world_size, own))
    return folder / name if name else None


def _choose(folder: Path, context: Context, world_size: int, own: Values) -> str | None:
    context.check_owner()
    rows = {
        name: sum(1 for _ in rundir.read_lines(context.dir / name))
        for name in (rundir.HISTORY, rundir.GROWTH)
    }

    def damage(info: CheckpointInfo) -> str | None:
        _check_identity(folder / info.name, info.identity, own)
        for name, known in ((rundir.HISTORY, info.history), (rundir.GROWTH, info.growth)):
            if known > rows[name]:
                return f"knows {known} rows of {name}, which has {rows[name]}"
        return None

    def refusal(info: CheckpointInfo) -> str | None:
        if info.world_size != world_size and not info.boundary:
            return f"is of {info.world_size} processes in the middle of an epoch"
        return None

    checkpoint.tidy(folder)
    path, passed_over = checkpoint.newest(folder, damage, refusal)
    for item in passed_over:
        print(f"checkpoint passed over: {item}", flush=True)
        context.event("passed_over", reason=str(item))
    damaged = [str(item) for item in passed_over if item.damaged]
    if path is None and damaged:
        raise UserError(
            f"{context.dir}: no checkpoint can be used ({damaged[0]}); restore what is missing, or "
            f"remove {folder} to begin this training from the start"
        )
    checkpoint.unseal(passed_over)
    if path is not None:
        context.event("resumed", step=checkpoint.info(path).step, file=path.name)
    return path.name if path else None


def _check_identity(path: Path, written: Values, own: Values) -> None:
    keys = sorted(k for k in written.keys() | own.keys() if written.get(k) != own.get(k))
    if keys:
        differing = ", ".join(f"{k} {written.get(k)} → {own.get(k)}" for k in keys[:5])
        raise UserError(
            f"{path} was written for something else ({differing}); restore that, or remove "
            f"{path.parent} to begin this training from the start"
        )
