"""The files below a folder: which may be images, and which are passed over, and why."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.display.errors import UserError

Row = dict[str, str]
EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff",
              ".ppm", ".pgm", ".pnm", ".jp2", ".avif"}  # fmt: skip
SYSTEM = {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot",
          "__macosx", "lost+found", "$recycle.bin", "recycler", "system volume information",
          "found.000", "__pycache__"}  # fmt: skip
LARGEST = 2**31  # bytes of one image; there are sparse files of terabytes
KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device",
         stat.S_IFBLK: "device"}  # fmt: skip


class File(NamedTuple):
    """A file by its name below the folder; size in bytes and time of change in ns, if asked for."""

    name: str
    size: int = 0
    mtime: int = 0


@dataclass
class Tree:
    """What is below a folder.

    Args:
        images: the files that may be images, in the order of their names.
        folders: when each folder was changed, ns; by its name, the folder itself as ''.
        passed: what is neither, and why; the name of a folder ends in a slash.
    """

    images: list[File] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)
    passed: list[Row] = field(default_factory=list)


def tree(top: Path, facts: bool = True, endings: Set[str] = EXTENSIONS) -> Tree:
    """Read a folder with all below it; links are followed, but no folder is read twice.

    Folders come before links to folders, so that a link never takes the place of what it leads to.

    Args:
        top: the folder.
        facts: whether to ask for the size and time of each file, slow on a shared file system.
        endings: of the files that are wanted.

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
    """Note what is in one folder; return the folders in it, and the links to folders."""
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
    """Return what is in a folder, in the order of names.

    Raises:
        UserError: it cannot be read.
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
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or where we may not look
        return False


def why_not(entry: os.DirEntry[str], endings: Set[str] = EXTENSIONS) -> str | None:
    """Return why an entry is neither a folder to read nor a file with an image; None if it is."""
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
    except OSError:  # a link to nothing: an image that is missing, which reading it will tell
        return None
    return f"a {KINDS.get(kind, 'special file')}, no file"


def fact(top: Path, name: str) -> File:
    """Return size and time of a file; zeros if it has vanished, or is a link to nothing."""
    try:
        status = os.stat(f"{top}/{name}")  # noqa: PTH116 (there may be millions)
    except OSError:
        return File(name)
    return File(name, status.st_size, status.st_mtime_ns)


def image(name: str) -> bool:
    """Whether a file may be an image by its name; what it is, prep finds out."""
    return ending(name) in EXTENSIONS


def ending(name: str) -> str:
    """Return what a name ends with, from the last dot on."""
    return f".{name.rpartition('.')[2].lower()}"


def skipped(name: str) -> str | None:
    """Return why a folder of this name holds no images of the set; None if it may."""
    if name.startswith("."):
        return "hidden"
    return "made by the system, not by you" if name.lower() in SYSTEM else None


def folders(path: Path) -> set[str]:
    """Return the names of the folders in a folder that may hold images."""
    return {entry.name for entry in entries(path) if is_folder(entry) and not skipped(entry.name)}


def read(path: Path) -> bytes:
    """Return the content of a file; a FIFO, for whose writer one would wait for ever, is none.

    Raises:
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        if status.st_size > LARGEST:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes are too many for one image")
        return file.read()
