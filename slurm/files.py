"""Reading and extending records that others may have put anything in the place of."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any


def opened(path: Path) -> BufferedReader:
    """Open a file to read its bytes; a FIFO or a device, where one could wait for ever, is refused.

    Raises:
        OSError: it is missing, may not be read, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")


def read(path: Path) -> bytes:
    """Return the bytes of a regular file; see `opened`."""
    with opened(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; None if it is not there."""
    return json.loads(read(path)) if path.exists() else None


def write_json(path: Path, value: object) -> None:
    """Write a JSON file under another name and rename it: it is seen whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def append(path: Path, text: str) -> None:
    """Append lines to a file in a single write, so that lines of two writers never mix.

    Raises:
        OSError: it cannot be written, or the disk is full; the file is as it was.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
    try:
        append_to(handle, text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)


def append_to(handle: int, text: str) -> None:
    """Append to an open file in one piece, or not at all.

    Raises:
        OSError: the disk is full; half a line, which would spoil the next one, was taken back.
    """
    content = text.encode()
    written = os.write(handle, content)
    if written < len(content):
        os.ftruncate(handle, os.fstat(handle).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
