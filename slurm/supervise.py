"""What runs on each node of a job: start the command, pass signals on, say how it ended.

SLURM's signals reach every process of a job at once, in any order and more than once. So this
imports nothing heavy, is deaf to them until it can listen (submission sees to that), and only ever
notes them. It decides nothing: whether the job goes back into the queue is decided after it, by
`slurm.requeue` on the job's first node, where a supervisor that was killed is noticed, too.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from slurm import scheduler
from slurm.job import DONE, FAILED, REFUSED, STOPPED, Job
from slurm.place import Place
from slurm.records import Event

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
POLL = 0.2  # seconds
AGREE = 60.0  # seconds for a file written on another node to become visible on this one
JOIN = 120.0  # seconds in which the supervisors of all nodes must have begun
AGAIN = 5.0  # seconds until a stop is asked for once more: the command may have been starting
PORTS = range(20000, 32000)  # below those that the kernel gives to outgoing connections


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Which attempt of which job this process is part of, and where.

    Args:
        id: the job's, as 12_3 within an array: its last element has the array's own number.
        number: the job's own, different for each element.
        restart: how often the job was requeued before.
        node: number of this node in the job.
        names: of the job's nodes.
    """

    id: str
    number: int
    restart: int
    node: int
    names: tuple[str, ...]

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return what SLURM says in the environment of a task or of a batch script."""
        hosts = scheduler.call("scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"])
        number = environment["SLURM_JOB_ID"]
        array = environment.get("SLURM_ARRAY_JOB_ID")
        return cls(
            id=f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else number,
            number=int(number),
            restart=int(environment.get("SLURM_RESTART_COUNT", "0")),
            node=int(environment.get("SLURM_NODEID", "0")),
            names=tuple(hosts.split()),
        )

    @property
    def attempt(self) -> str:
        """Tell this attempt from every other, of this job or another."""
        return f"{self.id}.{self.restart}"

    def event(self, name: str, **facts: Any) -> Event:
        """Return what happened in this attempt, to be noted; for `facts` see `slurm.records`."""
        return Event(event=name, job=self.id, restart=self.restart, **facts)

    def own(self, directory: Path, since: float = 0.0) -> list[Event]:
        """Return what is on record of this attempt.

        Args:
            directory: of the job.
            since: when it started; an older cluster may have had a job of the same id.
        """
        return [
            row
            for row in Event.read(directory)
            if (row.job, row.restart) == (self.id, self.restart) and row.time >= since
        ]

    def absent(self, directory: Path, since: float = 0.0) -> list[str]:
        """Return the nodes whose supervisors have not begun; see `own`."""
        rows = self.own(directory, since)
        there = {row.node for row in rows if row.event == "joined"} | {0}
        return [name for number, name in enumerate(self.names) if number not in there]

    def place(self) -> Place:
        """Return the part of this node, and how the nodes find each other.

        The port follows from job and restart: the same on each node without a word exchanged, and
        not the one that the attempt before may have left behind.
        """
        number = self.number * 7 + self.restart
        return Place(
            job=self.attempt,
            node=self.node,
            nodes=len(self.names),
            address=_address(self.names[0]),
            port=PORTS[number % len(PORTS)],
        )


def _address(node: str) -> str:
    """Return where a node is reached, which its name in SLURM need not tell."""
    try:
        return scheduler.facts("node", node)["NodeAddr"]
    except (scheduler.Refused, scheduler.Unreachable, KeyError):
        return node


def supervise(job: Job, first: str | None = None) -> None:
    """Run a job's command on this node until it ends; leave with an exit code.

    Args:
        job: what to run.
        first: the job this one is the successor of, if it is one.

    The code is 0 if the command was done or has stopped as asked, so that SLURM does not end the
    other nodes' parts, which may still be saving; 1 otherwise.
    """
    seen: list[int] = []
    _listen(seen)
    here = Allocation.here()
    if here.node == 0:
        gpus = len(here.names) * int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
        here.event("began", nodes=list(here.names), gpus=gpus).note(job.directory)
    else:
        here.event("joined", node=here.node).note(job.directory)
    why_not = refusal(job, first)
    if why_not is None:
        code = _run(job, here, seen)
    elif job.finished.exists():
        code = DONE
    else:
        print(f"{job.name}: {why_not}", flush=True)
        code = REFUSED
    if here.node == 0 or code not in (DONE, STOPPED):  # SLURM then ends the other nodes' parts
        ended = here.event("ended", node=here.node, code=code, saved=job.saved())
        ended.note(job.directory)
    sys.exit(0 if code in (DONE, STOPPED) else 1)


def _listen(seen: list[int]) -> None:
    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    for number in SIGNALS:
        signal.signal(number, note)
    signal.signal(signal.SIGCONT, signal.SIG_IGN)


def refusal(job: Job, first: str | None) -> str | None:
    """Return why the command is not started, if it is not.

    Args:
        job: what would be run.
        first: the job that this one is to succeed, if it is.
    """
    if job.finished.exists():
        return "finished already"
    if job.cancelled:
        return "was cancelled; it stays so until it is launched again"
    waited = 0.0  # not by a clock, which goes on while the job is suspended
    while missing := [path for path in job.needs if not path.exists()]:
        if waited >= AGREE:
            return f"{missing[0]} does not exist; what comes before is not finished"
        time.sleep(1)
        waited += 1
    return _not_to_succeed(first) if first else None


def _not_to_succeed(first: str) -> str | None:
    """Return why a successor has nothing to go on with, if so: its first was not taken away."""
    try:
        # not for ever: nodes are held meanwhile
        state = scheduler.patient(lambda: scheduler.end(first), AGREE)
    except scheduler.Unreachable:
        state = None
    if state in scheduler.TAKEN:
        return None
    return (
        f"job {first} ended as {state or 'nobody knows what'}, not preempted; launch again to go on"
    )


def _run(job: Job, here: Allocation, seen: list[int]) -> int:
    environment = os.environ | here.place().words(job.directory)
    command = subprocess.Popen(
        job.command, env=environment, preexec_fn=_deaf, stdin=subprocess.DEVNULL
    )
    told = -AGAIN
    noted = False
    due = time.monotonic() + JOIN if here.node == 0 else math.inf
    while True:
        code = command.poll()
        if code is None and time.monotonic() > due:
            if here.absent(job.directory):  # nobody waits for them for ever
                command.kill()
                return FAILED
            due = math.inf
        if seen and not noted and here.node == 0:  # SLURM may have signalled the command, too
            noted = True
            here.event("signal", signal=signal.Signals(seen[0]).name).note(job.directory)
        if code is not None:
            return code
        if seen and time.monotonic() - told >= AGAIN:
            told = time.monotonic()
            with suppress(ProcessLookupError):
                command.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            command.wait(POLL)


def _deaf() -> None:
    """Have the command ignore signals until it has handlers of its own."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
