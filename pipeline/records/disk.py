"""Files as the disk is to have them: whole or not at all, and there after a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError, surroundings
from slurm import files

FULL = 2**20  # bytes left on a disk that counts as full


@contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[Path]:
    """Give a temporary name; what is written there replaces `path`, whole or not at all.

    What is `private` only this user may read. The folder must be there: one that was removed while
    a stage runs must not come back with only the newest of its files.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o600 if private else 0o666 & ~_umask())
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except Exception as error:
        if isinstance(error, OSError) and error.filename in (None, name):
            error.filename = str(path)  # what is known of it outside
        full = errno.ENOSPC  # safetensors wraps it, torch does not even say
        told = f"os error {full}" in str(error) or shutil.disk_usage(path.parent).free < FULL
        if not isinstance(error, OSError) and told:
            raise OSError(full, os.strerror(full), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def sync(path: Path) -> None:
    """Force a file or a directory entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, replacing an older link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, path.parent))
    temporary.replace(path)


def refusal(directory: Path) -> UserError | None:
    """Return what the machine says to a small file in a directory; None if it can be written."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return surroundings(OSError(error.errno, error.strerror), directory)
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with files.opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
