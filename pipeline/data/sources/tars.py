"""List the members of tar files once, and read them by offset, without extraction.

Python's tarfile silently treats a damaged header as the end of the archive. This module checks the
end, and refuses an archive that was cut off or is damaged in the middle. A hole of zeros looks like
the end, too, so nothing may follow an end.
"""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.data.sources.tree import Row
from pipeline.display.errors import UserError

BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
TAR = ".tar"
IMPOSSIBLE = (errno.EINVAL, errno.EOVERFLOW)  # the size of a member is larger than any file


def opened(path: Path) -> IO[bytes]:
    """Open a tar file.

    Raises:
        UserError: the tar file cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable") from None


def members(
    stream: IO[bytes], where: Path, passed: list[Row], inside: str, size: int | None = None
) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an uncompressed tar file; `offset_data` is the offset of each.

    Args:
        stream: a stream at the beginning of the tar file.
        where: the path of the tar file, for messages.
        passed: links, devices and pipes are added to it; they are never followed.
        inside: what the names of these begin with.
        size: bytes of the tar file; None if it extends to the end of the stream.

    Raises:
        UserError: the tar file is damaged; the message names the last member that was found.
    """
    last, begin = "", stream.tell()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                last = member.name
                if member.isreg():
                    yield member
                elif not member.isdir():
                    reason = "a link" if member.islnk() or member.issym() else "no regular file"
                    passed.append({"name": f"{inside}/{member.name}", "reason": reason})
            stream.seek(tar.offset)
            whole = stream.read(BLOCK) == bytes(BLOCK)
            # what follows the end within its record is undefined
            used = ((tar.offset - begin) // RECORD + 1) * RECORD
            stream.seek(begin + used)
            more = (size is None or used < size) and any(stream.read(RECORD))
    except tarfile.TarError:
        whole = more = False
    except OSError as error:
        if error.errno not in IMPOSSIBLE:
            raise UserError(f"{where}: {error.strerror}; make it readable") from None
        whole = more = False
    if not whole and last:
        raise UserError(
            f"{where} is broken in or after its member {last!a}: it was cut off or is damaged; "
            "get it again"
        )
    if more:
        raise UserError(
            f"{where} goes on after its end, behind member {last!a}: it is damaged, or several "
            "archives in one file; get it again, or write it again as one archive"
        )
    if not whole and not stream.seek(0, os.SEEK_END):
        raise UserError(f"{where} is empty; get it again, or remove it")
    if not whole:
        raise UserError(
            f"{where} is not a tar file, or is compressed; get it again, or unpack it with gunzip"
        )


def read(path: Path, offset: int) -> bytes:
    """Return the content of the member whose data begins at an offset of a tar file.

    Raises:
        OSError: the member cannot be read, or the tar file was replaced.
    """
    with path.open("rb") as file:
        file.seek(offset - BLOCK)
        try:
            member = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.TarError:
            raise OSError(errno.EIO, "is not where it was when the images were listed") from None
        data = file.read(member.size)
    if len(data) < member.size:
        raise OSError(errno.EIO, "its tar file was cut off")
    return data
