"""End a command with its exit code, and with one last line that gives the reason."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from pipeline.display import limits
from pipeline.display.errors import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    StageFailed,
    UserError,
    from_os_error,
    gist,
)
from pipeline.display.outside import say, visible

T = TypeVar("T")
ORDER = (DONE, INTERRUPTED, FAILED, BAD_INPUT)  # from the best to the worst


def worst(*codes: int) -> int:
    """Return the exit code of a command from those of the several things that it did."""
    return max(codes, key=ORDER.index)


def ending(command: Callable[[], int], at_interrupt: str = "") -> int:
    """Run a command and return its exit code, even if the command raises an exception.

    Args:
        command: returns its exit code.
        at_interrupt: message for a Ctrl-C without a message.
    """
    try:
        return result_or_code(command, "the root")
    except KeyboardInterrupt as error:
        if message := str(error) or at_interrupt:
            say(f"error: {message}", file=sys.stderr)
        return INTERRUPTED


def result_or_code(work: Callable[[], T], where: object) -> T | int:
    """Return the result of `work`; on an error print one last line and return an exit code.

    Args:
        work: the work to do.
        where: path to name if the operating system reports an error without one.
    """
    try:
        done = work()
        sys.stdout.flush()  # here, because an error can still be reported
        return done
    except UserError as error:
        code, message = BAD_INPUT, str(error)
    except StageFailed as error:
        code, message = error.code, str(error)
    except OSError as error:
        code, message = BAD_INPUT, str(from_os_error(error, where))
    except (MemoryError, RuntimeError, ImportError) as error:
        if not (cure := limits.cure(gist(error))):
            raise
        code, message = BAD_INPUT, f"{gist(error)}; {cure} and try again"
    log, _, last = message.rstrip().rpartition("\n")
    lines = "\n".join(filter(None, (log, f"error: {last}")))
    print(visible(lines), file=sys.stderr, flush=True)
    return code
