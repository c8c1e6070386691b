"""Supervise a job's command on one node: start it, forward signals, record its end.

SLURM signals every process of a job at once, in any order and more than once. The supervisor
therefore imports nothing heavy, starts with these signals ignored (set in the batch script), and
afterwards only records and forwards them. It does not decide whether the job is requeued;
`slurm.requeue` does that on the first node, after the supervisors ended, even if one was killed.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from slurm import orphan, scheduler, site
from slurm.entry import TAKEN
from slurm.job import DONE, FAILED, REFUSED, STOPPED, Job
from slurm.place import Place
from slurm.records import Event

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
MARK = "SUPERVISED_MARK"  # variable that the batch script hands to all that belongs to an attempt
POLL = 0.2  # seconds between two checks of the command
AGREE = 60.0  # seconds within which a file written on another node becomes visible here
JOIN = 120.0  # seconds within which the supervisors of all nodes must have begun
AGAIN = 5.0  # seconds between stop requests, as the command may have been starting at the last one
PR_SET_PDEATHSIG = 1  # prctl(2)
PORTS = range(20000, 32000)  # below the range that the kernel uses for outgoing connections


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The attempt of a job that this process belongs to, and its node.

    Args:
        id: job id; `12_3` in an array, whose last element has the array's own id as SLURM_JOB_ID.
        restart: number of requeues before this attempt.
        node: number of this node in the job.
        names: names of the job's nodes.
        mark: the mark that the batch script drew. It is needed because a cluster that was set up
            anew gives the same ids again, and times of different nodes cannot be compared.
    """

    id: str
    restart: int
    node: int
    names: tuple[str, ...]
    mark: str = ""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the allocation in the environment that SLURM gives a task or a batch script."""
        hosts = scheduler.call("scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"])
        id, array = environment["SLURM_JOB_ID"], environment.get("SLURM_ARRAY_JOB_ID")
        return cls(
            id=f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else id,
            restart=int(environment.get("SLURM_RESTART_COUNT", "0")),
            node=int(environment.get("SLURM_NODEID", "0")),
            names=tuple(hosts.split()),
            mark=environment.get(MARK, ""),
        )

    @property
    def attempt(self) -> str:
        """The id of this attempt, unique among all attempts of all jobs of a cluster."""
        return f"{self.id}.{self.restart}"

    def event(self, name: str, **facts: Any) -> Event:
        """Return an event of this attempt, to be recorded; see `slurm.records` for `facts`."""
        return Event(event=name, job=self.id, restart=self.restart, mark=self.mark, **facts)

    def own(self, directory: Path) -> list[Event]:
        """Return the recorded events of this attempt."""
        own = (self.id, self.restart, self.mark)
        return [row for row in Event.read(directory) if (row.job, row.restart, row.mark) == own]

    def absent(self, directory: Path) -> list[str]:
        """Return the nodes whose supervisors have not begun."""
        rows = self.own(directory)
        there = {row.node for row in rows if row.event == "joined"} | {0}
        return [name for number, name in enumerate(self.names) if number not in there]

    def place(self) -> Place:
        """Return the place of this node, with the address where the nodes of the job meet.

        All nodes derive the same port from id and mark of the attempt, without communication. The
        ports of the previous attempt and of other jobs, which may still be in use, are very likely
        others; because of the mark, so are those of other clusters.
        """
        number = zlib.crc32(f"{self.attempt} {self.mark}".encode())
        return Place(
            job=self.attempt,
            node=self.node,
            nodes=len(self.names),
            address=_address(self.names[0]),
            port=PORTS[number % len(PORTS)],
        )


def _address(node: str) -> str:
    """Return the address of a node, which can differ from its name in SLURM."""
    try:
        return site.entry("node", node)["NodeAddr"]
    except (scheduler.Refused, scheduler.Unreachable, KeyError):
        return node


def supervise(job: Job, first: str | None = None) -> None:
    """Run a job's command on this node until it ends; return the exit code of the supervisor.

    Args:
        job: the job to run.
        first: id of the job that this job succeeds, if it is a successor.

    The code is 0 if the command finished or stopped on request, and 1 otherwise. On 1, SLURM ends
    the command on the other nodes, which must not happen while they are saving.
    """
    seen: list[int] = []
    _listen(seen)
    here = Allocation.here()
    if here.node == 0:
        gpus = len(here.names) * int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
        here.event("began", nodes=list(here.names), gpus=gpus).note(job.directory)
    else:
        here.event("joined", node=here.node).note(job.directory)
    script = orphan.Script(here.mark, here.id) if here.node == 0 else None
    why_not = refusal(job, first)
    if why_not is None:
        code = STOPPED if script and script.over() else _run(job, here, seen, script)
    elif job.finished.exists():
        code = DONE
    else:
        code = REFUSED  # `slurm.requeue` prints why, as the last line
    if here.node == 0 or code not in (DONE, STOPPED):  # on 1, SLURM ends the other nodes' commands
        why = why_not if code == REFUSED else None  # None: the command's own log says why
        ended = here.event("ended", node=here.node, code=code, saved=job.saved(), why=why)
        ended.note(job.directory)
    _deaf()  # at exit Python removes its handlers, and a signal would count as a failure
    if script and code != DONE and script.killed():
        orphan.requeue(os.environ["SUBMITIT_FOLDER"])
    sys.exit(0 if code in (DONE, STOPPED) else 1)


def _listen(seen: list[int]) -> None:
    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    for number in SIGNALS:
        signal.signal(number, note)
    signal.signal(signal.SIGCONT, signal.SIG_IGN)


def refusal(job: Job, first: str | None) -> str | None:
    """Return why the command must not start, or None.

    Args:
        job: the job.
        first: id of the job that it succeeds, if it is a successor.
    """
    if job.finished.exists():
        return "finished already"
    if job.cancelled:
        return "was cancelled; it stays so until it is launched again"
    waited = 0.0  # counted, because a clock goes on while the job is suspended
    while missing := [path for path in job.needs if not path.exists()]:
        if waited >= AGREE:
            return f"{missing[0]} does not exist; what comes before is not finished; launch again"
        time.sleep(1)
        waited += 1
    return _not_to_succeed(first) if first else None


def _not_to_succeed(first: str) -> str | None:
    """Return why a successor must not run if its predecessor was not preempted; else None."""
    try:
        # for a limited time, because the job holds its nodes meanwhile
        state = scheduler.patient(lambda: scheduler.end(first), AGREE)
    except scheduler.Unreachable:
        state = None
    if state in TAKEN:
        return None
    if state is None:
        return f"it is unknown how job {first} ended; launch again to go on"
    return f"job {first} ended as {state}, not preempted; launch again to go on"


def _run(job: Job, here: Allocation, seen: list[int], script: orphan.Script | None) -> int:
    environment = os.environ | here.place().words(job.directory)
    command = subprocess.Popen(
        job.command, env=environment, preexec_fn=_as_child, stdin=subprocess.DEVNULL
    )
    signalled = -AGAIN
    noted = False
    due = time.monotonic() + JOIN if here.node == 0 else math.inf
    while True:
        code = command.poll()
        if code is None and time.monotonic() > due:
            if here.absent(job.directory):  # do not wait for these nodes for ever
                command.kill()
                return FAILED
            due = math.inf
        if script and script.ended and not seen:
            seen.append(signal.SIGTERM)  # as SLURM will soon do, or did while Python started
        if seen and not noted and here.node == 0:  # the command may have got it, too
            noted = True
            here.event("signal", signal=signal.Signals(seen[0]).name).note(job.directory)
        if code is not None:
            return code
        if seen and time.monotonic() - signalled >= AGAIN:
            signalled = time.monotonic()
            with suppress(ProcessLookupError):
                command.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            command.wait(POLL)


def _as_child() -> None:
    """Let the kernel signal the command to save and stop when its supervisor is killed.

    SLURM ends the remaining processes of a step, but without cgroups it does not find a process
    that lost its parent.
    """
    _deaf()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _deaf() -> None:
    """Ignore the signals in this process; a command inherits that until it installs handlers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
