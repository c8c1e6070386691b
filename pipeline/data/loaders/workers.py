"""Run a DataLoader's worker processes so that full shared memory or a killed worker is noticed.

Batches pass from the workers to the training through /dev/shm. With torch's defaults, a batch that
does not fit is silently lost in a thread of the worker, and the training waits for ever. Therefore
this module starts only as many workers as there is room for. Each worker writes its batch itself,
so that errors are reported, and the waiting process checks the workers regularly.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from pipeline.display.errors import UserError
from pipeline.records.environment import fewer_cores

SHARED = Path("/dev/shm")
PREFETCH = 2  # batches prepared in advance per worker
HELD = 2  # further batches in work or in transit
SPARE = 0.9  # share of the free memory to use
POLL = 1  # seconds between two checks of the workers
CURE = "give it more (docker run --shm-size=8g), or use a smaller train.batch_size"


def affordable(wanted: int, batch_bytes: int, neighbours: int) -> int:
    """Return how many workers the shared memory has room for; print a note if fewer.

    Args:
        wanted: workers of this process.
        batch_bytes: size of a batch.
        neighbours: processes on this machine that share the memory.
    """
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    room = int(SPARE * free / neighbours) // batch_bytes
    workers = max(0, min(wanted, (room - HELD) // PREFETCH))
    if workers < wanted:
        need = neighbours * batch_bytes * (PREFETCH * wanted + HELD) / SPARE
        _say(
            f"data.loader=torch: {SHARED} has {free / 2**20:.0f} MiB free, {wanted} worker "
            f"processes would need {need / 2**20:.0f}: {workers} are used, which is slower; {CURE}"
        )
    return workers


@cache  # print the note once, not in every epoch
def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def batches(loader: DataLoader[Any], waiting: Callable[[float], None]) -> Iterator[Any]:
    """Yield the batches of a loader made with `timeout=POLL`; `waiting` is called meanwhile.

    Raises:
        UserError: a worker was killed, or the shared memory is full.
    """
    left = iter(loader)
    _remove_death_handler()
    since = time.monotonic()
    while True:
        try:
            batch = next(left)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:  # the last two: a worker died
            if known := _explained(error, _exit_code(left)):
                raise known from error
            if "timed out" not in str(error):
                raise
            waiting(time.monotonic() - since)
            continue
        yield batch
        since = time.monotonic()


def _remove_death_handler() -> None:
    """Remove torch's handler of SIGCHLD, which raises anywhere in the training, e.g. in a step.

    `next` checks the workers itself, each time that it has waited for `POLL` seconds.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _exit_code(left: Any) -> int | None:
    """Return the exit code of the first worker that has ended abnormally, if one has."""
    workers = getattr(left, "_workers", ())  # no workers: this process loads by itself
    return next((worker.exitcode for worker in workers if worker.exitcode), None)


def _explained(error: Exception, code: int | None) -> UserError | None:
    text = str(error)
    if "shared memory" in text or "(shm)" in text or code == -signal.SIGBUS:
        return UserError(f"{SHARED} is full, a batch did not fit in; {CURE}, and launch again")
    if code:
        how = f"exit code {code}" if code > 0 else f"{signal.strsignal(-code)} (signal {-code})"
        return UserError(
            f"a worker process of data.loader=torch ended: {how}; launch again to "
            f"continue. If memory ran out, use a smaller train.batch_size or {fewer_cores()}"
        )
    return None
