"""What commands print: to a reader who may have left, on a terminal that may lack a character."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any

STDERR = 2
LEFT = (errno.EPIPE, errno.EIO)  # `| head` has seen enough; the terminal was closed
PLAIN = {
    "→": "->", "⇄": "<->", "★": "*", "·": "-", "–": "-", "—": "-", "…": "...", "±": "+-", "×": "x",
    "≥": ">=", "≤": "<=", "≈": "~", "µ": "u", "’": "'", "━": "-", "█": "#",
}  # fmt: skip


class Patient(io.FileIO):
    """A file whose reader may leave: what he would have read is dropped, the work goes on.

    What cannot be written for another reason, a full disk, is an error once, and dropped after.
    """

    refused = False

    def write(self, data: Any, /) -> int:
        """Write, or act as if."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in LEFT and not self.refused and self.fileno() != STDERR:
                self.refused = True
                raise OSError(error.errno, error.strerror, "standard output") from None
            return len(data)


def program(module: str) -> str:
    """Return how a user calls a module: as a sub-command of `dyrep`, if it was, or by its name."""
    return sys.argv[0] if sys.argv[0].startswith("dyrep ") else f"python -m {module}"


def settle() -> None:
    """Have what is printed reach whoever reads it in his characters, and harm nobody if none does.

    A command begins with this; it may be called again.
    """
    codecs.register_error("plainly", _plainly)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _patient(stream))


def _patient(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Patient(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="plainly",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be encoded by what looks like it, or by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    told = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost)
    return "".join(told), error.end


def deliver() -> None:
    """Have all that was printed written, while an error can still be told.

    Raises:
        OSError: it cannot be.
    """
    sys.stdout.flush()


def gone() -> bool:
    """Whether nobody reads any more what is printed."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        return any(told & (select.POLLERR | select.POLLHUP) for _, told in watch.poll(0))
    except (OSError, ValueError, AttributeError):
        return False  # no file: a test looks on
