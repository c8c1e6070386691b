"""Who owns a stage directory now: at most one attempt at a time, each with a number.

The owner holds a lock on the file `attempt` for as long as it lives (also through exec), so a
second launch beside a running one is refused instead of writing into the same files.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from pipeline import rundir
from pipeline.errors import UserError


def last(directory: Path) -> dict[str, Any]:
    """Return the latest attempt: its number (0 if there was none), pid, host and start."""
    try:
        return dict(json.loads((directory / rundir.ATTEMPT).read_text()))
    except (OSError, ValueError):
        return {"attempt": 0}


def claim(directory: Path) -> int:
    """Become the owner of `directory`; return the number of this attempt.

    Raises:
        UserError: another process owns it.
    """
    handle = os.open(directory / rundir.ATTEMPT, os.O_RDWR | os.O_CREAT, 0o666)
    os.set_inheritable(handle, True)  # the lock belongs to the open file: torchrun keeps it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = last(directory)
        os.close(handle)
        raise UserError(
            f"{directory.name} is already running (pid {owner.get('pid')} on {owner.get('host')}); "
            "wait for it, or stop it and launch again"
        ) from None
    number = int(last(directory)["attempt"]) + 1
    row = {"attempt": number, "pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(row).encode(), 0)
    os.fsync(handle)
    return number
