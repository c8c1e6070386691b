"""Read and append to files that another process may have replaced, even by a FIFO or a device."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any


def opened(path: Path) -> BufferedReader:
    """Open a file for reading; refuse a FIFO or a device, which could block for ever.

    Raises:
        OSError: the file is missing, not readable, or not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read(path: Path) -> bytes:
    """Return the bytes of a regular file; see `opened`."""
    with opened(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it does not exist."""
    return json.loads(read(path)) if path.exists() else None


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically: under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def append(path: Path, text: str) -> None:
    """Append lines to a file in a single write, so that lines of two writers never mix.

    Raises:
        OSError: the file cannot be written or the disk is full; the file is unchanged.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
    try:
        append_to(handle, text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)


def append_to(handle: int, text: str) -> None:
    """Append to an open file, everything or nothing.

    Raises:
        OSError: the disk is full; a partial line was truncated, so the next line stays readable.
    """
    content = text.encode()
    written = os.write(handle, content)
    if written < len(content):
        os.ftruncate(handle, os.fstat(handle).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
