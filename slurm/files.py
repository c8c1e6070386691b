"""Reading records that others may have put anything in the place of."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


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
