"""Signals that ask a stage to save and leave: the handler sets a flag, the stage looks at it.

Imports nothing heavy, because the handlers must stand before torch is imported: a signal that
arrives during that import would otherwise kill the job.
"""

from __future__ import annotations

import ctypes
import signal
from types import FrameType

_requested = False


def install() -> None:
    """Turn TERM, INT and USR2 into a flag, and ask for TERM when the parent process dies."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, _note)
    die_with_parent()


def requested() -> bool:
    """Return whether a stop was asked for since `install`."""
    return _requested


def _note(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True


def die_with_parent() -> None:
    """Have the kernel send TERM when the parent dies; kept across exec (prctl(2))."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
