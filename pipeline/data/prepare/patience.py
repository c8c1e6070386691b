"""To wait for what may never return, and still hear that one is to leave.

A read from a dead file system returns to nobody, and no signal ends it. So it is done in a thread
that may be left behind, while the main thread, which hears the signals, looks up now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
BEAT = 0.2  # seconds between two looks


def patiently(work: Callable[[], T], look: Callable[[], None]) -> T:
    """Return what `work` returns; `look` is called meanwhile, and may raise to leave it behind."""
    answer: Future[T] = Future()
    thread = Thread(target=_do, args=(work, answer), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(BEAT)
        look()
    return answer.result()


def _do(work: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(work())
    except BaseException as error:
        answer.set_exception(error)
