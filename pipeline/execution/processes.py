"""Run a stage in one or more processes: start them, forward stop requests, interpret their end.

This process stays as the parent, without torch, and can handle a signal at any moment. If it is
killed, the kernel signals the processes to save and stop. If one of them dies, the parent ends the
others, because collective work cannot continue. The parent also waits for processes that the stage
left behind (data loader workers): none of them may write during the next attempt.

A single process needs no rendezvous. Several processes on one node meet through an unnamed file in
memory that only they inherit, and communicate over the loopback interface: nothing is reachable
from another machine, and no host name is needed. Processes on several nodes meet at the address
that the supervisor of their job provides.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.contract import interrupt
from pipeline.contract.pulse import PULSE, RENDEZVOUS, SHOW, Watch
from pipeline.display import limits
from pipeline.display.errors import DONE, FAILED, STOPPED
from pipeline.display.outside import say
from pipeline.records.environment import cores
from slurm.place import Place

POLL = 0.2  # seconds between two checks of the processes
PATIENCE = 30.0  # seconds that processes have to exit after one of them has died
LEFT = 5.0  # seconds that processes left behind have to exit before they are killed
SHOWING = 0.5  # seconds that a process needs to write its stacks
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)

HUNG = "made no step for"
INHERITED = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|NODE_RANK|NNODES|MASTER_(ADDR|PORT)"
    rf"|TORCHELASTIC_.*|PET_.*|{RENDEZVOUS}|{PULSE}"
)
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


@dataclass(frozen=True)
class End:
    """The end of a process that neither finished nor stopped on request."""

    rank: int
    code: int
    silent: float = 0.0  # seconds without a heartbeat, if the process hung

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that killed the process, if one did."""
        return signal.Signals(-self.code) if self.code < 0 else None

    def __str__(self) -> str:
        if self.silent:
            return f"rank {self.rank} {HUNG} {round(self.silent, 1):g} s"
        if self.signal is None:
            return f"rank {self.rank} ended with exit code {self.code}"
        why = limits.cure_of_death(self.signal)
        if self.signal == signal.SIGKILL and not why:
            why = "by somebody, or by the kernel because memory ran out"
        return f"rank {self.rank} was killed by {self.signal.name}{', ' * bool(why)}{why}"


def forget_others() -> None:
    """Remove the variables of other launchers (torchrun, …), which a shell may have inherited."""
    for name in filter(INHERITED.fullmatch, list(os.environ)):
        del os.environ[name]


def run(command: Sequence[str], count: int, place: Place | None = None) -> End | None:
    """Run a command in `count` processes on this node; return the first failure, if any.

    Args:
        command: runs in each process.
        count: number of processes per node.
        place: the place of this node among those of its SLURM job; None without a job.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    others = _children()  # the W&B follower is not a process of the training
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
    """Yield the variables and the inherited files that the processes need for their rendezvous."""
    if place and place.nodes > 1:
        yield {RENDEZVOUS: f"tcp://{_host(place.address)}:{place.port}/{place.job}"}, []
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
    """Return the environment of a process, with its rank in the usual variables."""
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
    """Wait for all processes; end them on a stop request, a failure, or a hang."""
    running = dict(enumerate(workers, start=first_rank))
    first: End | None = None
    until = float("inf")
    while running:
        gone = [End(rank, code) for rank, w in running.items() if (code := w.poll()) is not None]
        running = {rank: w for rank, w in running.items() if w.returncode is None}
        failed = [end for end in gone if end.code not in (DONE, STOPPED)]
        if failed and first is None:
            # a killed process breaks the connections of the others: it failed first
            first = min(failed, key=lambda end: end.code)
            until = time.monotonic() + PATIENCE
        pids = {rank - first_rank: worker.pid for rank, worker in running.items()}
        if first is None and (hanging := watch.hanging(pids)):
            number, silent = next(iter(hanging.items()))
            first = End(first_rank + number, FAILED, silent)
            until = _show(first, first_rank, pids)
        if first or interrupt.requested():
            number = signal.SIGTERM if time.monotonic() < until else signal.SIGKILL
            _signal((worker.pid for worker in running.values()), number)
        for worker in list(running.values())[:1]:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(POLL)
    return first


def _wait_for_orphans(others: set[int]) -> None:
    """Wait until the processes that the stage left behind are gone; kill them after `LEFT`."""
    until = time.monotonic() + LEFT
    while orphans := _children() - others:
        _signal(orphans, signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(POLL)


def _show(hangs: End, first_rank: int, pids: Mapping[int, int]) -> float:
    """Make all processes write their stacks; return the time by which they have done so.

    They write one after the other, because faulthandler writes in small pieces, and all processes
    write to the same file.
    """
    say(f"{hangs}; every process shows where it is", file=sys.stderr)
    for number, pid in pids.items():
        say(f"rank {first_rank + number}:", file=sys.stderr)
        _signal([pid], SHOW)
        time.sleep(SHOWING)
    return time.monotonic()


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _children() -> set[int]:
    """Return the children of this process; none if the kernel does not list them."""
    pid = os.getpid()
    with suppress(OSError):  # kernel without CONFIG_PROC_CHILDREN, or no /proc
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
        return {int(child) for child in pids.split()}
    return set()
