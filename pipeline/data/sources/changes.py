"""Find files of a source that were added, removed or changed since prep read them.

`source.gz`, beside the shards, has a header with the folders and their modification times, and one
line per file: size, modification time, name. A folder with an unchanged time has the same entries,
so added and removed files are found by one stat per folder; changed content needs one stat per
file. This is slow for millions of files on a shared file system. Therefore it has a time limit, and
files that were not checked are counted.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipeline.data.sources.base import Listing
from pipeline.data.sources.tree import (
    EXTENSIONS,
    File,
    ending,
    entries,
    fact,
    image,
    is_folder,
    tree,
    why_not,
)
from pipeline.records import disk
from slurm import files

FILE = "source.gz"
DAMAGED = (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError)
"""Exceptions that a damaged `source.gz` causes."""


@dataclass
class Changes:
    """Numbers of changed files; `unseen` files were not checked within the time limit."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    unseen: int = 0
    files: int = 0

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("added", "removed", "changed")}
        return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def summary(listing: Listing) -> dict[str, int | str]:
    """Return the summary for the manifest: number of files, bytes, and a digest of the list."""
    digest = hashlib.sha256()
    for line in _lines(listing):
        digest.update(line.encode())
    files = list(listing.facts[::2]) + [file.size for file in listing.others]
    return {"files": len(files), "bytes": sum(files), "sha256": digest.hexdigest()}


def save(listing: Listing, path: Path) -> None:
    """Write the list of files of a source, which `compare` reads."""
    names = [row["name"] for row in listing.passed]
    endings = _endings(listing)
    known = [name for name in names if name.endswith("/") or image(name) or ending(name) in endings]
    count = len(listing.facts) // 2 + len(listing.others)
    about = {
        "files": count,
        "folders": listing.folders,
        "passed": known,
        "endings": endings,
    }
    header = json.dumps(about) + "\n"
    with (
        disk.replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as file,
    ):
        file.write(header.encode())
        for line in _lines(listing):
            file.write(line.encode())


def _endings(listing: Listing) -> list[str]:
    """Return the suffixes of the files that hold images, e.g. `.parquet`; none for `EXTENSIONS`."""
    if listing.facts:  # each image is a file
        own = {ending(item.name) for items in listing.splits.values() for item in items}
        return [] if own <= EXTENSIONS else sorted(own | EXTENSIONS)
    return sorted({ending(f.name) for f in listing.others if _folder(f.name) in listing.folders})


def compare(root: Path, path: Path, seconds: float) -> Changes:
    """Compare the files below a folder with the list that `save` wrote.

    Args:
        root: folder of the source.
        path: file that `save` wrote.
        seconds: time limit; the remaining files are counted as unseen.

    Raises:
        DAMAGED: the list is damaged.
    """
    until = time.monotonic() + seconds
    header, _ = _open(path)
    found = Changes(files=header["files"], unseen=header["files"])
    moved = {name for name, mtime in header["folders"].items() if _moved(until, root, name, mtime)}
    known = set(header["passed"])
    if moved:  # changed folders come first
        for file in _in_time(until, path):
            if _folder(file.name) in moved:
                known.add(file.name)
                _look(root, file, found)
    if time.monotonic() < until:
        for folder in moved:
            _count_added(root, folder, known, header, found)
    for file in _in_time(until, path):
        if _folder(file.name) not in moved:
            _look(root, file, found)
    return found


def _in_time(until: float, path: Path) -> Iterator[File]:
    return takewhile(lambda _: time.monotonic() < until, _open(path)[1])


def _moved(until: float, root: Path, name: str, mtime: int) -> bool:
    """Return whether a folder has changed; False after the time limit."""
    return time.monotonic() < until and fact(root, name).mtime != mtime


def _look(root: Path, file: File, found: Changes) -> None:
    found.unseen -= 1
    now = fact(root, file.name)
    if now != file:
        found.removed += now.mtime == 0
        found.changed += now.mtime != 0


def _count_added(
    root: Path, folder: str, known: set[str], header: dict[str, Any], found: Changes
) -> None:
    """Count new files in a folder, and in its new sub-folders."""
    if not (root / folder).is_dir():
        return
    endings = frozenset(header.get("endings", ())) or EXTENSIONS
    for entry in entries(root / folder):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if why_not(entry, endings):
            continue
        if not is_folder(entry):
            found.added += name not in known
        elif name not in header["folders"] and f"{name}/" not in known:
            found.added += len(tree(root / name, False, endings).images)


def _lines(listing: Listing) -> Iterator[str]:
    names = (item.name for items in listing.splits.values() for item in items)
    facts = iter(listing.facts)
    if listing.facts:
        for name, size, mtime in zip(names, facts, facts, strict=True):
            yield f"{size} {mtime} {json.dumps(name)}\n"
    for file in listing.others:
        yield f"{file.size} {file.mtime} {json.dumps(file.name)}\n"


def _open(path: Path) -> tuple[dict[str, Any], Iterator[File]]:
    lines = gzip.open(files.opened(path), "rt", encoding="utf-8")  # noqa: SIM115 (see `_files`)
    return json.loads(next(lines, "")), _files(lines)


def _files(lines: Any) -> Iterator[File]:
    with lines:
        for line in lines:
            size, mtime, name = line.split(" ", 2)
            yield File(json.loads(name), int(size), int(mtime))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
