"""The code that jobs run, kept as it was when they were submitted.

A job may wait for days and come back after each interruption; what is edited in the checkout
meanwhile must not become part of it.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.records import rundir, snapshot
from pipeline.records.provenance import PROJECT

PACKAGES = ("dyrep", "pipeline", "slurm")


def place(root: Path) -> Path:
    """Return where the present code is kept: the same for the same code."""
    return rundir.code_dir(root, snapshot.digest(_files())).resolve()


def freeze(root: Path) -> Path:
    """Keep a copy of the present code; return where it is.

    Raises:
        UserError: what is there is not it, or others may change it.
    """
    return snapshot.keep(_files(), place(root))


def _files() -> snapshot.Files:
    return {
        f"{package}/{name}": path
        for package in PACKAGES
        for name, path in snapshot.below(PROJECT / package).items()
    }
