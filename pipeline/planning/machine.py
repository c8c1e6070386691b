"""Check whether the stages of a local run could start here: /proc, and limits of the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

from pipeline.config import Config
from pipeline.display import limits
from pipeline.display.errors import UserError

THREADS = 16  # a stage starts more
PROC = Path("/proc/self/fd")
MOUNT = "mount it (mount -t proc proc /proc)"


def check(config: Config) -> None:
    """Refuse a local run whose stages could not start.

    Raises:
        UserError: the message names what is missing or too small, and the cure.
    """
    count = config.cluster.processes_per_node
    if count > 1 and not PROC.exists():
        raise UserError(
            f"cluster.processes_per_node={count} needs /proc, which cannot be read here; {MOUNT}, "
            "or use 1"
        )
    _check_threads()
    if limits.on_memory():
        _check_import()


def _check_threads() -> None:
    """Refuse a user who cannot start a few threads more."""
    release = Event()
    threads = [Thread(target=release.wait) for _ in range(THREADS)]
    begun = []
    try:
        for thread in threads:
            thread.start()
            begun.append(thread)
    except RuntimeError as error:
        cure = limits.cure(str(error)) or "raise the number of processes that this user may have"
        raise UserError(f"only {len(begun)} more threads can be started here; {cure}") from None
    finally:
        release.set()
        for thread in begun:
            thread.join()


def _check_import() -> None:
    """Refuse a limit of memory in which torch cannot even be loaded."""
    trial = subprocess.run(
        [sys.executable, "-c", "import torch"], capture_output=True, text=True, errors="replace"
    )
    last = (trial.stderr.strip().splitlines() or ["torch cannot be loaded"])[-1]
    if trial.returncode and (cure := limits.cure(last if trial.returncode > 0 else limits.CRASH)):
        raise UserError(f"torch cannot be loaded here ({last}); {cure}")
