"""Wait for a call that may never return, and still react to stop requests.

A read from a dead file system never returns, and no signal ends it. The read is therefore done in a
thread that can be abandoned, while the main thread, which handles signals, checks regularly.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
PAUSE = 0.2  # seconds between two checks


def patiently(work: Callable[[], T], poll: Callable[[], None]) -> T:
    """Return the result of `work`; call `poll` meanwhile, which may raise to abandon `work`."""
    answer: Future[T] = Future()
    thread = Thread(target=_do, args=(work, answer), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(PAUSE)
        poll()
    return answer.result()


def _do(work: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(work())
    except BaseException as error:
        answer.set_exception(error)
