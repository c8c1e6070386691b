"""A stage in processes of its own: started, asked to stop, waited for, and their end understood.

We stay as the parent, without torch, ready for a signal at any moment. Should we be killed, the
kernel asks the processes to stop and save. Should one of them die, the others are ended: what they
do together cannot go on. What they leave behind (those who load data) is waited for, too: nobody
may be left to write into the next attempt.

One process meets nobody. Several on one node meet through a file in memory that has no name, which
only they have inherited, and talk on the loopback interface: none of it can be reached from
another machine, none of it needs the name of this one. Those on several nodes meet where the
supervisor of their job says.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.display.outside import say
from pipeline.errors import DONE, FAILED, STOPPED
from pipeline.records.environment import cores
from pipeline.signals import interrupt
from pipeline.signals.pulse import PULSE, SHOW, Watch
from slurm.place import Place

POLL = 0.2  # seconds between two looks at the processes
PATIENCE = 30.0  # seconds that processes have to leave when one of them has died
LEFT = 5.0  # seconds that what they left behind has
SHOWING = 1.0  # seconds to write where each of them is
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)

HUNG = "made no step for"
RENDEZVOUS = "PIPELINE_RENDEZVOUS"  # the URL at which processes of a group meet
INHERITED = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|NODE_RANK|NNODES|MASTER_(ADDR|PORT)"
    rf"|TORCHELASTIC_.*|PET_.*|{RENDEZVOUS}|{PULSE}"
)
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


@dataclass(frozen=True)
class End:
    """How a process ended that was not done and did not stop as asked."""

    rank: int
    code: int
    silent: float = 0.0  # seconds, of one that made no step and was ended for it

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that killed it, if one did."""
        return signal.Signals(-self.code) if self.code < 0 else None

    def __str__(self) -> str:
        if self.silent:
            return f"rank {self.rank} {HUNG} {round(self.silent, 1):g} s"
        if self.signal is None:
            return f"rank {self.rank} ended with exit code {self.code}"
        memory = self.signal == signal.SIGKILL
        return f"rank {self.rank} was killed by {self.signal.name}" + (
            ", as the kernel does when memory runs out" if memory else ""
        )


def forget_others() -> None:
    """Forget what other tools tell their processes: the shell may have it from any of them."""
    for name in filter(INHERITED.fullmatch, list(os.environ)):
        del os.environ[name]


def run(command: Sequence[str], count: int, place: Place | None = None) -> End | None:
    """Run a command in `count` processes on this node; return what went wrong first, if it did.

    Args:
        command: of each of them.
        count: as many on each node.
        place: of this node, where they are part of a job.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    others = _children()  # who follows the training is none of its processes
    watch = Watch(count)
    with _meeting(count, place) as (meeting, inherited):
        workers = [
            subprocess.Popen(
                command,
                env=_environment(rank, count, place) | meeting | {PULSE: str(watch.file)},
                pass_fds=[*inherited, watch.file],
            )
            for rank in range(count)
        ]
    first = _wait(workers, count * (place.node if place else 0), watch)
    _wait_for_orphans(others)
    return first


@contextmanager
def _meeting(count: int, place: Place | None) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Yield what processes need to meet: words for their environment, files that they inherit."""
    if place and place.nodes > 1:
        yield {RENDEZVOUS: f"tcp://{_host(place.address)}:{place.port}"}, []
    elif count > 1:
        store = os.memfd_create("rendezvous")
        try:
            yield {RENDEZVOUS: f"file:///proc/self/fd/{store}", **LOOPBACK}, [store]
        finally:
            os.close(store)
    else:
        yield {}, []


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _environment(local: int, count: int, place: Place | None) -> dict[str, str]:
    """Return the environment of a process, who it is in the names that everyone uses."""
    node, nodes = (place.node, place.nodes) if place else (0, 1)
    own = {
        "RANK": node * count + local,
        "WORLD_SIZE": nodes * count,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": count,
    }
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    return threads | os.environ | {name: str(value) for name, value in own.items()}


def _wait(workers: list[subprocess.Popen[bytes]], first_rank: int, watch: Watch) -> End | None:
    """Wait for all; ask them to leave when we are asked, or when one of them fails or hangs."""
    running = dict(enumerate(workers, start=first_rank))
    first: End | None = None
    until = float("inf")
    while running:
        gone = [End(rank, code) for rank, w in running.items() if (code := w.poll()) is not None]
        running = {rank: w for rank, w in running.items() if w.returncode is None}
        failed = [end for end in gone if end.code not in (DONE, STOPPED)]
        if failed and first is None:
            # one that is killed takes the others along, whose connections break: it was the first
            first = min(failed, key=lambda end: end.code)
            until = time.monotonic() + PATIENCE
        pids = {rank - first_rank: worker.pid for rank, worker in running.items()}
        if first is None and (hanging := watch.hanging(pids)):
            number, silent = next(iter(hanging.items()))
            first = End(first_rank + number, FAILED, silent)
            until = _show(first, pids.values())
        if first or interrupt.requested():
            number = signal.SIGTERM if time.monotonic() < until else signal.SIGKILL
            _ask((worker.pid for worker in running.values()), number)
        for worker in list(running.values())[:1]:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(POLL)
    return first


def _wait_for_orphans(others: set[int]) -> None:
    """Wait until what the processes left behind is gone, too."""
    until = time.monotonic() + LEFT
    while orphans := _children() - others:
        _ask(orphans, signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(POLL)


def _show(hangs: End, pids: Iterable[int]) -> float:
    """Have all processes write where they are; return the time at which that is done."""
    say(f"{hangs}; every process shows where it is", file=sys.stderr)
    _ask(pids, SHOW)
    time.sleep(SHOWING)
    return time.monotonic()


def _ask(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _children() -> set[int]:
    """Return the processes that we are the parent of; none where the kernel does not tell."""
    pid = os.getpid()
    with suppress(FileNotFoundError):  # built without CONFIG_PROC_CHILDREN
        told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return {int(child) for child in told.split()}
    return set()
