"""Who owns a stage directory now: at most one attempt at a time, each with a number.

Two guards. A lock, held by the process that started the attempt for as long as it lives, so a
second launch beside a running one is refused. And the number itself: what is about to publish
something compares it first, because a lock does not reach processes that outlive their parent or
sit on a node that lost contact. Whoever is no longer the newest attempt writes nothing more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from pipeline.errors import Interrupted, Superseded, UserError
from pipeline.records import rundir, store
from pipeline.records.schemas import Attempt, Event
from pipeline.signals import interrupt

PATIENCE = 300.0  # seconds a node waits for the first one of its job
NUMBER = "PIPELINE_ATTEMPT"  # tells workers whose they are, whatever the directory says by then


def last(directory: Path) -> Attempt:
    """Return the newest attempt; its number is 0 if there was none.

    Raises:
        UserError: the file is damaged; numbers that begin anew would protect nothing.
    """
    there = rundir.there(directory / Attempt.FILE)
    return store.read(Attempt, directory) if there else Attempt(attempt=0)


def born(pid: int) -> int | None:
    """Return when a process on this machine began, in ticks; None if it has ended.

    Together with its number this names a process: numbers are given again.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])


def alive(directory: Path) -> bool:
    """Whether the newest attempt still runs, on this machine.

    Asking for its lock would tell, too, but could turn away an attempt that begins just then.
    """
    owner = last(directory)
    if owner.host != socket.gethostname() or not (now := born(owner.pid)):
        return False
    if "born" in owner.model_fields_set:
        return owner.born == now
    try:  # an attempt of an older version
        return os.fsencode(directory.name) in Path(f"/proc/{owner.pid}/cmdline").read_bytes()
    except OSError:
        return False


def claim(directory: Path, job: str | None = None) -> int:
    """Become the owner of `directory`; return the number of this attempt.

    A job of a cluster takes over from another: the cluster knows that that one has ended, and what
    is left of it, on a node that lost contact, writes nothing more once the number has changed.

    Args:
        directory: of the stage.
        job: the cluster's job and the count of its restarts, if this is part of one.

    Raises:
        UserError: another process owns it.
    """
    handle = os.open(directory / rundir.LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # open until we end
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = last(directory)
        if not (job and owner.job):
            os.close(handle)
            raise UserError(
                f"{directory.name} is already running (pid {owner.pid} on "
                f"{owner.host}); wait for it, or stop it and launch again"
            ) from None
    number = last(directory).attempt + 1
    owner = Attempt(
        attempt=number, pid=os.getpid(), host=socket.gethostname(), time=time.time(),
        born=born(os.getpid()), job=job,
    )  # fmt: skip
    store.write(owner, directory)
    os.environ[NUMBER] = str(number)
    return number


def join(directory: Path, job: str) -> int:
    """Return the number of the attempt that the first node of this job has claimed, waiting for it.

    Raises:
        UserError: it has not within `PATIENCE`.
        Interrupted: a signal asked this process to leave.
    """
    until = time.monotonic() + PATIENCE
    while last(directory).job != job:
        if interrupt.requested():
            raise Interrupted
        if time.monotonic() > until:
            raise UserError(f"the first node of job {job} did not start within {PATIENCE:.0f} s")
        time.sleep(0.5)
    number = last(directory).attempt
    os.environ[NUMBER] = str(number)
    return number


def ending(directory: Path, number: int) -> Event | None:
    """Return the event that tells how attempt `number` ended: stopped, or why it failed.

    Several processes may have failed in it. One that refused its input, or was killed, takes the
    others along; of crashes the first counts.
    """
    rows = [row for row in store.events(directory) if row.attempt == number]
    ends = [row for row in rows if row.event in ("stopped", "failed")]
    known = ("stopped", "input", "killed")
    kinds = {row.kind or row.event: row for row in reversed(ends)}
    return next((kinds[kind] for kind in known if kind in kinds), ends[0] if ends else None)


def own() -> int:
    """Return the attempt this process belongs to."""
    return int(os.environ[NUMBER])


def vanished(directory: Path) -> bool:
    """Whether the directory of a stage that runs is gone, or what has its name is no stage."""
    return not rundir.there(directory / rundir.STAGE)


def check(directory: Path, number: int) -> None:
    """Make sure that attempt `number` still owns `directory`.

    Raises:
        FileNotFoundError: the directory has vanished.
        Superseded: a newer attempt does.
    """
    if vanished(directory):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
    newest = last(directory).attempt
    if newest != number:
        raise Superseded(
            f"attempt {number} of {directory.name} is superseded by attempt {newest}; "
            "it wrote nothing more and leaves"
        )
