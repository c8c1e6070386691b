"""Define errors and exit codes.

A `UserError` means bad input. Its message is one line: what is wrong, where, and how to fix it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pipeline.display import limits
from pipeline.display.masking import mask
from pipeline.display.outside import line

DONE = 0
FAILED = 1
BAD_INPUT = 2
STOPPED = 75  # EX_TEMPFAIL: saved and stopped early; the same command continues
INTERRUPTED = 130
LISTED = 40  # a line lists at most so many names
TRACEBACK = ("Traceback (most recent call last)", "Original Traceback")  # first words of one


class UserError(Exception):
    """Bad input, in one line: what is wrong, where, and the cure. Exit code 2.

    The line may quote the input; secrets in it are masked.
    """

    def __init__(self, message: str) -> None:
        super().__init__(line(mask(message)))


REFUSALS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
    errno.ENOMEM: "free some memory",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
} | dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable")
OTHERS = "take a root= of your own"  # the cure if another user's files are in the way


def from_os_error(error: OSError, where: object) -> UserError:
    """Convert an OSError to a one-line UserError; `where` is its path if the error has none."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    if path and (lost := link_to_nothing(path, *path.parents)):
        return lost
    cure = (REFUSALS | {errno.ENOENT: "restore it"}).get(error.errno or 0, "fix the cause")
    closed = error.errno in (errno.EACCES, errno.EPERM)
    if closed and (who := _other_owner(path or Path(str(where)))):
        cure = f"it belongs to {who}: {OTHERS}"
    cure = limits.cure(error.strerror or "") or cure
    return UserError(f"{error.filename or where}: {error.strerror}; {cure} and launch again")


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error for a file or folder that this user may not read."""
    who = _other_owner(path)
    cure = f"ask {who} to make it readable" if who else "make it readable"
    return UserError(f"{path} cannot be read ({error.strerror}); {cure}")


def _other_owner(path: Path) -> str | None:
    """Return the owner of a path, or of the first folder above it, if that is another user."""
    for above in (path, *path.parents):
        try:
            uid = above.stat().st_uid
            return f"user {above.owner()}" if uid != os.geteuid() else None
        except KeyError:  # the user has no name on this machine
            return f"user {uid}"
        except OSError:  # the path does not exist or is hidden by permissions
            continue
    return None


def link_to_nothing(*paths: Path) -> UserError | None:
    """Return the error for the first path that is a dangling link, if there is one.

    Creating its target would write to the wrong disk if a disk is not mounted.
    """
    lost = next((path for path in paths if _leads_nowhere(path)), None)
    if lost is None:
        return None
    return UserError(f"{lost} is a link to {lost.readlink()}, where nothing is; restore that")


def _leads_nowhere(path: Path) -> bool:
    try:
        return path.is_symlink() and not path.exists()
    except OSError:  # not readable
        return False


class StageFailed(Exception):
    """A stage ended without its result. Exit code 1; the message names the log."""

    code = FAILED

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


class Cancelled(StageFailed):
    """A user stopped a stage with `pipeline.cancel`. Exit code 130, as after a Ctrl-C."""

    code = INTERRUPTED


class NoResult(Exception):
    """A stage cannot have a result; the message says why and what to change, without traceback."""


class NoNumber(NoResult):
    """A stage ended with nan or infinity as a result."""


class Superseded(Exception):
    """A newer attempt owns the stage directory; this attempt must not write any more."""


class Interrupted(KeyboardInterrupt):
    """A stop was requested and everything is saved; ends a whole sweep."""


def gist(error: BaseException) -> str:
    """Return the most informative line of an error; exporters and compilers print pages.

    This is the error's type and first line. If the message contains a traceback of another process,
    it is the last line of that.
    """
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    if any(line.startswith(TRACEBACK) for line in lines):
        return lines[-1]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def nearest(word: str, valid: list[str], prefix: str = "") -> str:
    """Return `did you mean 'x'?` for a close valid name, else the list of valid names.

    With more names than fit into a line, one that is less close will do, else a few are listed.
    """
    from difflib import get_close_matches

    written = {name.lower(): name for name in valid}
    cutoff = 0.6 if len(valid) <= LISTED else 0.5
    close = get_close_matches(word.lower(), written, n=1, cutoff=cutoff)
    if close:
        return f"did you mean '{prefix}{written[close[0]]}'?"
    if len(valid) > LISTED:
        return f"there are {len(valid):,}, e.g. {', '.join(valid[:3])}"
    return f"valid are: {', '.join(valid)}"
