"""Write the file of an option such as `--json FILE`, whatever kind of file FILE is."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.display.errors import UserError
from pipeline.records import rundir


def write(path: Path, text: str) -> None:
    """Write a text to the path that a user named.

    A regular file is replaced atomically, following links. A device, a FIFO or an open descriptor
    (/dev/stdout, /dev/fd/3) is written to and not replaced.

    Raises:
        UserError: the path cannot be written, or is `-`, which elsewhere means standard output.
        BrokenPipeError: the reader is gone.
    """
    if str(path) == "-":
        raise UserError("- is no file; /dev/stdout is standard output, ./- a file of that name")
    try:
        if not _is_there(path):
            target = path.resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            rundir.write_text(target, text)
        elif (descriptor := _descriptor(path)) is not None:
            sys.stdout.flush()  # keep the order with what was printed before
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
    """Return the descriptor if a path is, or links to, an open descriptor of this process.

    Opening the path again would write from the start of a file that the descriptor appends to.
    """
    open_ones = Path("/proc/self/fd").resolve()
    while path.is_symlink():
        if path.parent.resolve() == open_ones:
            return int(path.name)
        path = path.parent / path.readlink()
    return None


def _is_there(path: Path) -> bool:
    """Whether a path exists, following links; a circle of links is an error."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True
