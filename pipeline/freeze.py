"""The code that jobs run, kept as it was when they were submitted.

A job may wait for days and come back after each interruption; what is edited in the checkout
meanwhile must not become part of it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from pipeline import rundir

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("dyrep", "pipeline", "slurm")


def place(root: Path) -> Path:
    """Return where the present code is kept: the same for the same code."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((PROJECT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    return rundir.code_dir(root, digest.hexdigest()[:12]).resolve()


def freeze(root: Path) -> Path:
    """Keep a copy of the present code; return where it is."""
    kept = place(root)
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=kept.parent, prefix=f".{kept.name}."))
    for package in PACKAGES:
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / package, copy / package, ignore=without)
    copy.chmod(0o755)
    try:
        copy.rename(kept)
    except OSError:  # another launch was faster, with the same
        shutil.rmtree(copy)
    return kept
