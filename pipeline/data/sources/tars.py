"""Files inside tar files: found once, then read where they lie, without unpacking.

tarfile takes a header that is damaged for the end of the archive, and says nothing. Here the end
has to be one: what was cut off, or is broken in the middle, is refused.
"""

from __future__ import annotations

import errno
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.display.errors import UserError

BLOCK = tarfile.BLOCKSIZE
TAR = ".tar"


def opened(path: Path) -> IO[bytes]:
    """Open a tar file.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable") from None


def members(stream: IO[bytes], where: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar file that is not compressed; `offset_data` is their place in it.

    Args:
        stream: its content.
        where: what it is called, for what is said.

    Raises:
        UserError: it is broken; names the last member that was found.
    """
    last = ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                last = member.name
                if member.isreg():
                    yield member
            stream.seek(tar.offset)
            whole = stream.read(BLOCK) == bytes(BLOCK)
    except tarfile.TarError:
        whole = False
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}; make it readable") from None
    if not whole and last:
        raise UserError(
            f"{where} is broken in or after its member {last!a}: it was cut off or is damaged; "
            "get it anew"
        )
    if not whole:
        raise UserError(
            f"{where} is no tar file, or compressed; get it anew, or unpack it with gunzip"
        )


def read(path: Path, place: int) -> bytes:
    """Return the file that begins at a place of a tar file; its header stands before it.

    Raises:
        OSError: it cannot be read, or is another tar file by now.
    """
    with path.open("rb") as file:
        file.seek(place - BLOCK)
        try:
            member = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.TarError:
            raise OSError(errno.EIO, "is not where it was when the images were listed") from None
        data = file.read(member.size)
    if len(data) < member.size:
        raise OSError(errno.EIO, "its tar file was cut off")
    return data
