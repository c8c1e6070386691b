"""The file that a command was told to write: `--json FILE`, `--html FILE`, whatever FILE is."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records import rundir


def write(path: Path, text: str) -> None:
    """Write a text to what a user named.

    A regular file is replaced, whole or not at all, where links to it lead. A device, a FIFO or an
    open descriptor (/dev/stdout, /dev/fd/3) is written to, and stays what it is.

    Raises:
        UserError: it cannot be written, or is `-`, which elsewhere means standard output.
        BrokenPipeError: who was to read it has gone.
    """
    if str(path) == "-":
        raise UserError("- is no file; /dev/stdout is standard output, ./- a file of that name")
    try:
        if not _is_there(path):
            target = path.resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            rundir.write_text(target, text)
        elif (descriptor := _descriptor(path)) is not None:
            sys.stdout.flush()  # what was said before comes before
            with open(descriptor, "w", encoding="utf-8", closefd=False) as stream:
                stream.write(text)
        elif path.is_file():
            rundir.write_text(path.resolve(), text)
        else:
            with path.open("w", encoding="utf-8") as stream:
                stream.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name another file") from None


def _descriptor(path: Path) -> int | None:
    """Return the number if a path is one of this process's open descriptors, or a link to one.

    To open it anew would begin at the start of a file that it appends to.
    """
    open_ones = Path("/proc/self/fd").resolve()
    while path.is_symlink():
        if path.parent.resolve() == open_ones:
            return int(path.name)
        path = path.parent / path.readlink()
    return None


def _is_there(path: Path) -> bool:
    """Whether a path leads to something; links in a circle are an error."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True
