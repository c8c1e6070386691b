"""List the files below a folder: possible images, and ignored files with the reason."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.display.errors import UserError
from slurm import files

Row = dict[str, str]
EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff",
              ".ppm", ".pgm", ".pnm", ".jp2", ".avif"}  # fmt: skip
SYSTEM = {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot",
          "__macosx", "lost+found", "$recycle.bin", "recycler", "system volume information",
          "found.000", "__pycache__"}  # fmt: skip
LARGEST = 2**31  # bytes per image; a sparse file can have terabytes
KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device",
         stat.S_IFBLK: "device"}  # fmt: skip


class File(NamedTuple):
    """A file: its name within the folder; size (bytes) and modification time (ns) if requested."""

    name: str
    size: int = 0
    mtime: int = 0


@dataclass
class Tree:
    """The content of a folder.

    Args:
        images: files that can be images, sorted by name.
        folders: modification time of each folder, ns, by name; the top folder is ''.
        passed: ignored files and folders, with the reason; the name of a folder ends in a slash.
    """

    images: list[File] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)
    passed: list[Row] = field(default_factory=list)


def tree(top: Path, facts: bool = True, endings: Set[str] = EXTENSIONS) -> Tree:
    """Read a folder recursively; links are followed, but no folder is read twice.

    Folders are read before links to folders, so a folder is listed under its own path.

    Args:
        top: the folder.
        facts: whether to get size and time of each file, which is slow on a shared file system.
        endings: suffixes of the requested files.

    Raises:
        UserError: a folder cannot be read.
    """
    found = Tree()
    seen: dict[tuple[int, int], str] = {}
    waiting, links = [""], list[str]()
    while waiting or links:
        below = waiting.pop() if waiting else links.pop(0)
        status = _status(top / below)
        here = (status.st_dev, status.st_ino)
        if here in seen:
            why = f"the same folder as {seen[here] or 'the one above all'}, by a link"
            found.passed.append({"name": f"{below}/", "reason": why})
            continue
        seen[here] = below
        found.folders[below] = status.st_mtime_ns
        real, linked = _read(top, below, facts, endings, found)
        waiting += real
        links += linked
    found.images.sort()
    return found


def _read(
    top: Path, below: str, facts: bool, endings: Set[str], found: Tree
) -> tuple[list[str], list[str]]:
    """Add the content of one folder; return its sub-folders, and links to folders."""
    real: list[str] = []
    linked: list[str] = []
    for entry in entries(top / below):
        name = f"{below}/{entry.name}" if below else entry.name
        why = why_not(entry, endings)
        if why:
            found.passed.append({"name": name + "/" * is_folder(entry), "reason": why})
        elif is_folder(entry):
            (linked if entry.is_symlink() else real).append(name)
        else:
            found.images.append(fact(top, name) if facts else File(name))
    return real, linked


def entries(path: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(path) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(error) from None


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> UserError:
    return UserError(f"{error.filename}: {error.strerror}; make it readable, or remove it")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a place without permission
        return False


def why_not(entry: os.DirEntry[str], endings: Set[str] = EXTENSIONS) -> str | None:
    """Return why an entry is ignored; None if it is a folder to read or can be an image."""
    if is_folder(entry):
        return skipped(entry.name)
    if ending(entry.name) not in endings:
        what = "no image" if endings is EXTENSIONS else f"no {' or '.join(sorted(endings))}"
        return skipped(entry.name) or f"{what} by its name"
    if entry.name.startswith("."):
        return "hidden"
    try:
        if entry.is_file():
            return None
        kind = stat.S_IFMT(entry.stat().st_mode)
    except OSError:  # a broken link: reading the image will report it
        return None
    return f"a {KINDS.get(kind, 'special file')}, no file"


def fact(top: Path, name: str) -> File:
    """Return size and time of a file; zeros if it is missing or a broken link."""
    try:
        status = os.stat(f"{top}/{name}")  # noqa: PTH116 (there may be millions)
    except OSError:
        return File(name)
    return File(name, status.st_size, status.st_mtime_ns)


def image(name: str) -> bool:
    """Whether the suffix of a file is that of an image; prep checks the content."""
    return ending(name) in EXTENSIONS


def ending(name: str) -> str:
    """Return the suffix of a name, in lower case."""
    return f".{name.rpartition('.')[2].lower()}"


def skipped(name: str) -> str | None:
    """Return why a folder of this name is ignored; None if it is read."""
    if name.startswith("."):
        return "hidden"
    return "made by the system, not by you" if name.lower() in SYSTEM else None


def folders(path: Path) -> set[str]:
    """Return the names of the sub-folders that can hold images."""
    return {entry.name for entry in entries(path) if is_folder(entry) and not skipped(entry.name)}


def content(path: Path) -> bytes:
    """Return the content of a file that a data set must have; a FIFO would block.

    Raises:
        UserError: it cannot be read, or is not a regular file.
    """
    try:
        return files.read(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; get it again, or make it readable") from None


def read(path: Path) -> bytes:
    """Return the content of a regular file; reading a FIFO could block for ever.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        if status.st_size > LARGEST:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes are too many for one image")
        return file.read()
