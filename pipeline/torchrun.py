"""A stage in several processes: torchrun below us, signals passed on, its end understood.

We stay as the parent, without torch, ready for a signal at any moment. torchrun is shielded from
stop signals: it would take one for a failure and kill workers that are still saving. It dies with
us; the workers, whose parent it is, are then asked to stop and save. Should torchrun die first,
they become our children, and we wait for them: nobody is left to write into the next attempt.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline import interrupt
from pipeline.environment import cores

POLL = 0.2  # seconds between two looks at the workers
PATIENCE = 60.0  # seconds left-over workers get to save before they are killed
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def run(module: str, argument: str, processes: int) -> int:
    """Run `python -m module argument` in several processes; return what torchrun returned."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    command = [sys.executable, "-m", "torch.distributed.run", *_rendezvous()]
    command += [f"--nproc-per-node={processes}", "--signals-to-handle=SIGHUP"]
    others = _children(os.getpid())  # who follows the training is none of its workers
    torchrun = subprocess.Popen([*command, "-m", module, argument], preexec_fn=_shield)
    while torchrun.poll() is None:
        if interrupt.requested():
            _ask(_children(torchrun.pid))
        with suppress(subprocess.TimeoutExpired):
            torchrun.wait(POLL)
    _wait_for_orphans(others)
    return torchrun.returncode


def _rendezvous() -> list[str]:
    """Return how torchrun finds its likes on the other nodes of a job, if there are any."""
    if int(os.environ.get("NNODES", "1")) == 1:
        return ["--standalone"]
    words = {"nnodes": "NNODES", "node-rank": "NODE_RANK"}
    words |= {"master-addr": "MASTER_ADDR", "master-port": "MASTER_PORT"}
    return [f"--{option}={os.environ[name]}" for option, name in words.items()]


def _shield() -> None:
    for number in interrupt.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(interrupt.PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_orphans(others: list[int]) -> None:
    """Wait until the workers of a torchrun that died are gone, too."""
    until = time.monotonic() + PATIENCE
    while orphans := set(_children(os.getpid())).difference(others):
        _ask(orphans, signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(POLL)


def _ask(pids: Iterable[int], number: int = signal.SIGTERM) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _children(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:  # it has just ended
        return []
    return [int(child) for child in children.split()]
