"""Keep copies of code under the hash of their content, so that later runs execute the same code."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.display.errors import UserError
from pipeline.records import disk
from slurm import private

Files = dict[str, Path]  # the path of each file, by its name within the copy


def digest(files: Files) -> str:
    """Return the hash of the names and contents of files."""
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(f"{name}\0".encode() + files[name].read_bytes())
    return found.hexdigest()[:12]


def below(folder: Path) -> Files:
    """Return all files below a folder, except those in __pycache__."""
    return {str(path.relative_to(folder)): path for path in _walk(folder)}


def keep(files: Files, kept: Path) -> Path:
    """Copy files to the folder `kept`, unless it exists; return the folder.

    Raises:
        UserError: the folder holds other files, or other users may change it.
    """
    if not os.path.lexists(kept):
        _copy(files, kept)
    check(kept, digest(files))
    return kept


def check(kept: Path, expected: str) -> None:
    """Check that a copy may be executed.

    Raises:
        UserError: other users may change the copy, or it does not match the hash.
    """
    if why := _flaw(kept, expected):
        raise UserError(f"{kept} {why}; it would be executed: remove it and launch again")


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _copy(files: Files, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with disk.beside(kept) as copy:
        copy.mkdir(mode=0o755)
        for name, path in files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy / name)
        copy.chmod(0o755)
        for path in copy.rglob("*"):
            path.chmod(path.stat().st_mode & ~private.WRITERS)
        with suppress(OSError):  # another launch has just made the same copy
            copy.rename(kept)


def _flaw(kept: Path, expected: str) -> str | None:
    folders = [kept, *(path for path in kept.rglob("*") if path.is_dir())]
    for folder in folders:
        if why := private.flaw(folder, private.WRITERS):
            return why if folder == kept else f"holds {folder.relative_to(kept)}, which {why}"
    files = below(kept)
    if digest(files) != expected:
        return "holds other code than its name says"
    writable = [name for name, path in files.items() if path.stat().st_mode & private.WRITERS]
    return f"holds {writable[0]}, which others may write to" if writable else None
