"""Handle signals that ask a stage to save and stop: the handler sets a flag, the stage polls it.

This module imports nothing heavy, because the handlers must be installed before torch is imported:
a signal during that import would otherwise kill the job.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1  # prctl(2)

_requested = False
_parent = os.getppid()


def install() -> None:
    """Turn TERM, INT and USR2 into a flag."""
    for number in SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    """Whether a stop was requested since `install`."""
    return _requested


def at_request(do: Callable[[], None]) -> None:
    """Call `do` at the first request, in a thread: a handler cannot run during a call into C."""
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # for data loader workers

    def listen() -> None:
        while os.read(hears, 1)[0] not in SIGNALS:  # SIGCHLD of a child that ended, for example
            pass
        do()

    threading.Thread(target=listen, daemon=True).start()


def defaults() -> None:
    """Let TERM, INT and USR2 end this process at once, while it has nothing to save."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def ignore() -> None:
    """Ignore stop signals during interpreter shutdown, when Python has removed its handlers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True


def die_with_parent(number: int) -> None:
    """Let the kernel send this signal when the parent dies, or at once if it is dead already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != _parent:
        os.kill(os.getpid(), number)
