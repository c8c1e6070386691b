"""Write files atomically and durably: complete or not at all, even after a power cut."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.display.errors import UserError, from_os_error
from slurm import files
from slurm.private import umask

FULL = 2**20  # bytes; a disk with less space left counts as full
LINGERS = 60.0  # seconds
LOCK = "lock"  # file in a temporary folder
TEMPORARY = re.compile(r"\..+\.(\w{8}|\d+)")  # of `replacing`, `beside`, links and progress


@contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path; the file written there replaces `path` atomically.

    A `private` file is readable by this user only. The folder must exist: if it was removed while
    a stage runs, it must not reappear with only the newest of its files.

    Raises:
        OSError: the file cannot be written; it names `path`, which is unchanged.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with suppress(OSError):  # a file system without locks: `sweep` removes nothing there
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
        temporary.chmod(0o600 if private else 0o666 & ~umask())
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except Exception as error:
        if isinstance(error, OSError) and error.filename in (None, name):
            error.filename = str(path)  # callers know this path, not the temporary one
        full = errno.ENOSPC  # safetensors wraps the system's error, and torch hides it
        is_full = f"os error {full}" in str(error) or shutil.disk_usage(path.parent).free < FULL
        if not isinstance(error, OSError) and is_full:
            raise OSError(full, os.strerror(full), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a path on the disk of `path`, to make a folder there and rename it to `path`."""
    made = tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True
    )
    with made as name, (Path(name) / LOCK).open("w") as lock:
        with suppress(OSError):  # a file system without locks: `sweep` removes nothing there
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name) / path.name


def sweep(*folders: Path) -> None:
    """Remove temporary files, folders and links that killed processes left in folders.

    A living process holds the lock of its temporary file, or of the file `LOCK` in its temporary
    folder. A link is renamed at once and a folder is locked at once, so a link or an unlocked
    folder that is older than `LINGERS` was left.
    """
    for folder in folders:
        for path in folder.glob(".*.*"):
            with suppress(OSError):  # the next launch tries again
                if TEMPORARY.fullmatch(path.name) and _is_left(path):
                    shutil.rmtree(path) if _is_folder(path) else path.unlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_left(path: Path) -> bool:
    locked = path / LOCK if _is_folder(path) else path
    if path.is_symlink() or not locked.exists():
        return time.time() - path.lstat().st_mtime > LINGERS
    with files.opened(locked) as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True


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
    try:
        temporary.symlink_to(os.path.relpath(target, path.parent))
    except OSError as error:  # the error names the target instead of `path`
        raise type(error)(error.errno, error.strerror, str(path)) from None
    temporary.replace(path)


def refusal(directory: Path) -> UserError | None:
    """Try to write a small file in a directory; return the error if that fails, else None."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return from_os_error(OSError(error.errno, error.strerror), directory)
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with files.opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_address(path: str | Path) -> None:
    """Refuse an address such as s3://bucket/x, which would be taken for a local folder `s3:`.

    Raises:
        UserError: the text is an address.
    """
    if isinstance(path, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise UserError(
            f"{path} is an address, and a folder or file that this machine sees is needed; mount "
            "or copy what is there, and give its path"
        )
