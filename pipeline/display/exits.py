"""How a command ends: its exit code, and one last line that says why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from pipeline.display.errors import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    StageFailed,
    UserError,
    surroundings,
)
from pipeline.display.outside import say, visible

T = TypeVar("T")
ORDER = (DONE, INTERRUPTED, FAILED, BAD_INPUT)  # from the best to the worst


def worst(*codes: int) -> int:
    """Return the exit code of a command that did several things."""
    return max(codes, key=ORDER.index)


def ending(command: Callable[[], int], at_interrupt: str = "") -> int:
    """Run a command and return its exit code, however it ends.

    Args:
        command: returns its exit code.
        at_interrupt: message for a Ctrl-C without a message.
    """
    try:
        return told(command, "the root")
    except KeyboardInterrupt as error:
        if said := str(error) or at_interrupt:
            say(f"error: {said}", file=sys.stderr)
        return INTERRUPTED


def told(work: Callable[[], T], where: object) -> T | int:
    """Return the result of `work`; on an error print one last line and return an exit code.

    Args:
        work: the work to do.
        where: path to name if the operating system reports an error without one.
    """
    try:
        done = work()
        sys.stdout.flush()  # while an error of it can still be told
        return done
    except UserError as error:
        code, said = BAD_INPUT, str(error)
    except StageFailed as error:
        code, said = error.code, str(error)
    except OSError as error:
        code, said = BAD_INPUT, str(surroundings(error, where))
    log, _, last = said.rstrip().rpartition("\n")
    lines = "\n".join(filter(None, (log, f"error: {last}")))
    print(visible(lines), file=sys.stderr, flush=True)
    return code
