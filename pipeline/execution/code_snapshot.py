"""The code that jobs run, kept as it was when they were submitted.

A job may wait for days and come back after each interruption; what is edited in the checkout
meanwhile must not become part of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records import rundir
from pipeline.records.provenance import PROJECT
from slurm import private

PACKAGES = ("dyrep", "pipeline", "slurm")


def place(root: Path) -> Path:
    """Return where the present code is kept: the same for the same code."""
    return rundir.code_dir(root, _digest(PROJECT)).resolve()


def freeze(root: Path) -> Path:
    """Keep a copy of the present code; return where it is.

    Raises:
        UserError: what is there is not it, or others may change it.
    """
    kept = place(root)
    if not os.path.lexists(kept):
        _copy(kept)
    if why := _flaw(kept):
        raise UserError(f"{kept} {why}; jobs would execute it: remove it and launch again")
    return kept


def _digest(project: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(project):
        digest.update(f"{path.relative_to(project)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _files(project: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((project / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _copy(kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=kept.parent, prefix=f".{kept.name}."))
    for package in PACKAGES:
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / package, copy / package, ignore=without)
    copy.chmod(0o755)
    for path in copy.rglob("*"):
        path.chmod(path.stat().st_mode & ~private.WRITERS)
    try:
        copy.rename(kept)
    except OSError:  # another launch was faster, with the same
        shutil.rmtree(copy)


def _flaw(kept: Path) -> str | None:
    """Return why a copy is not to be executed: others may change it, or somebody has."""
    folders = [kept, *(path for path in kept.rglob("*") if path.is_dir())]
    for folder in folders:
        if why := private.flaw(folder, private.WRITERS):
            return why if folder == kept else f"holds {folder.relative_to(kept)}, which {why}"
    if _digest(kept) != _digest(PROJECT):
        return "holds other code than the present"
    writable = [path for path in _files(kept) if path.stat().st_mode & private.WRITERS]
    return f"holds {writable[0].relative_to(kept)}, which others may write to" if writable else None
