"""Copy the code that jobs will run, as it is when they are submitted.

A job may wait for days and comes back after each interruption. Edits made in the checkout meanwhile
must not change the code that the job runs.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.records import rundir, snapshot
from pipeline.records.provenance import PROJECT

PACKAGES = ("dyrep", "pipeline", "slurm")


def code_dir(root: Path) -> Path:
    """Return the folder for a copy of the present code; equal code has the same folder."""
    return rundir.code_dir(root, snapshot.digest(_files())).resolve()


def freeze(root: Path) -> Path:
    """Copy the present code, unless the copy exists; return the folder of the copy.

    Raises:
        UserError: the folder holds other code, or other users may change it.
    """
    return snapshot.keep(_files(), code_dir(root))


def _files() -> snapshot.Files:
    return {
        f"{package}/{name}": path
        for package in PACKAGES
        for name, path in snapshot.below(PROJECT / package).items()
    }
