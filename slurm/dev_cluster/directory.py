"""Check and claim the directory of a SLURM cluster on this one machine.

Root runs what its files say, so no file is read that another user may have written.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from slurm import private
from slurm.dev_cluster.config import Cluster, default_directory
from slurm.dev_cluster.machine import BadInput, Failed

MARK = "dev_cluster.json"


def find(directory: Path) -> Cluster | None:
    """Return the cluster in `directory`, whether or not it is healthy, or None.

    Raises:
        BadInput: another user may have written its content.
        Failed: the file that describes it is damaged.
    """
    directory = Cluster(directory).directory
    if not is_marked(directory):
        return None
    try:
        row = json.loads((directory / MARK).read_text(encoding="utf-8"))
        return Cluster(**row | {"directory": directory})
    except (ValueError, TypeError):
        raise Failed(f"{directory / MARK} is damaged; {typed('down', directory)}") from None


def is_marked(directory: Path) -> bool:
    """Whether a directory has the mark of a cluster; root runs what its files say.

    Raises:
        BadInput: the directory has the mark, and another user may have written it.
    """
    try:
        (directory / MARK).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    _refuse_foreign(directory)
    return True


def _refuse_foreign(directory: Path, closed: int = private.OTHERS) -> None:
    wrong = private.flaw(directory, closed)
    if above := private.exchangeable(directory):
        wrong = wrong or f"can be replaced by {private.writers(above)} in {above}"
    if wrong:
        raise BadInput(
            f"{directory} {wrong}, and nothing in it was read: its files tell root what to run; "
            f"name another --dir (or, if only you wrote there: chmod 700 {directory})"
        )


def claim(cluster: Cluster) -> None:
    """Make the directory ours, and close it to other users.

    Raises:
        BadInput: the directory holds a cluster or other files, cannot be made, or another user
            could have written to it.
    """
    directory = cluster.directory
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        _refuse_foreign(directory, closed=0)
        _refuse_filled(directory)
        directory.chmod(0o700)
        _refuse_filled(directory)  # again: others may have written before it was closed
        row = dataclasses.asdict(cluster) | {"directory": str(directory)}
        with (directory / MARK).open("x") as handle:
            json.dump(row, handle, indent=2)
    except OSError as error:
        raise BadInput(f"--dir {directory}: {error.strerror}; name another") from None


def _refuse_filled(directory: Path) -> None:
    if is_marked(directory):
        end = typed("down", directory)
        raise BadInput(f"a cluster is in {directory} already; `{end}`, or name another --dir")
    if any(directory.iterdir()):
        raise BadInput(f"{directory} is not empty and not a cluster's; name another --dir")


def remove(directory: Path) -> None:
    """Remove a cluster's directory; the mark goes last, so that removal can be repeated."""
    for path in sorted(directory.iterdir(), key=lambda path: path.name == MARK):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    directory.rmdir()


def typed(command: str, directory: Path) -> str:
    """Return the command line for `command` with the cluster in `directory`."""
    option = "" if directory == default_directory() else f" --dir {directory}"
    return f"python -m slurm.dev_cluster {command}{option}"
