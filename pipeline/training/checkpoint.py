"""Checkpoint files: written whole or not at all, checked when read, the newest few kept.

checkpoints/step-00000110.pt      tensors and plain values (no code: loaded with weights_only)
checkpoints/step-00000110.json    its SHA-256; written after it, so a file without is ignored
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline import rundir
from pipeline.errors import UserError


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step and remove all but the newest `keep`."""
    path = folder / f"step-{step:08d}.pt"
    with rundir.replacing(path) as temporary:
        torch.save(state, temporary)
    seal = {"step": step, "bytes": path.stat().st_size, "sha256": rundir.sha256(path)}
    rundir.write_json(path.with_suffix(".json"), seal)
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()
    return path


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest checkpoint that is intact, and what was wrong with newer ones."""
    rejected: list[str] = []
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        wrong = _damage(path)
        if wrong is None:
            return torch.load(path, map_location="cpu", weights_only=True), rejected
        rejected.append(f"{path.name}: {wrong}")
    return None, rejected


def _damage(path: Path) -> str | None:
    try:
        seal = rundir.read_json(path.with_suffix(".json"))
    except (OSError, UserError):
        return "not sealed, its writing was cut off"
    return None if rundir.sha256(path) == seal["sha256"] else "content differs from its seal"
