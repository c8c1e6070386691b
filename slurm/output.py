"""Print safely, even if the reader closed the pipe or the terminal cannot show a character."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any

STDERR = 2
LEFT = (errno.EPIPE, errno.EIO)  # `| head` has ended, or the terminal was closed
PLAIN = {
    "→": "->", "⇄": "<->", "★": "*", "·": "-", "–": "-", "—": "-", "…": "...", "±": "+-", "×": "x",
    "≥": ">=", "≤": "<=", "≈": "~", "µ": "u", "’": "'", "━": "-", "█": "#",
}  # fmt: skip


class Patient(io.FileIO):
    """An output stream that drops output once its reader is gone, so that the work continues.

    Any other write error, such as a full disk, is raised once; later output is dropped.
    """

    refused = False

    def write(self, data: Any, /) -> int:
        """Write, or drop the data and pretend to have written it."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in LEFT and not self.refused and self.fileno() != STDERR:
                self.refused = True
                raise OSError(error.errno, error.strerror, "standard output") from None
            return len(data)


def program(module: str) -> str:
    """Return the command by which the user called a module: `dyrep NAME` or `python -m MODULE`."""
    return sys.argv[0] if sys.argv[0].startswith("dyrep ") else f"python -m {module}"


def make_safe() -> None:
    """Make standard output safe for any encoding and for a reader that goes away.

    Every command calls this first; calling it again changes nothing.
    """
    codecs.register_error("plainly", _plainly)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
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
    """Replace characters that cannot be encoded, by similar ones or by their numbers."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    plain = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost)
    return "".join(plain), error.end


def deliver() -> None:
    """Flush standard output while an error can still be reported.

    Raises:
        OSError: the output cannot be written.
    """
    sys.stdout.flush()


def gone() -> bool:
    """Whether the reader of standard output is gone."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0))
    except (OSError, ValueError, AttributeError):
        return False  # not a file: pytest captures output
