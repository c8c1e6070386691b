"""Own a stage directory: at most one attempt at a time does, identified by its number.

There are two guards. The process that started the attempt holds a lock while it lives, so a second
launch beside a running one is refused. And every write of a result or checkpoint first compares the
attempt number, because a lock does not reach processes that outlived their parent or run on a node
that lost contact. An attempt that is not the newest writes nothing more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.display.errors import Interrupted, Superseded, UserError
from pipeline.records import disk, rundir, store
from pipeline.records.schemas import Attempt, Event
from slurm import files

PATIENCE = 300.0  # seconds that a node waits for the first node of its job
NUMBER = "PIPELINE_ATTEMPT"  # environment variable: a worker's attempt, also when a newer one began


def last(directory: Path) -> Attempt:
    """Return the newest attempt; its number is 0 if there was none.

    Raises:
        UserError: the file is damaged; starting again at 1 would break the guard.
    """
    there = rundir.there(directory / Attempt.FILE)
    return store.read(Attempt, directory) if there else Attempt(attempt=0)


def born(pid: int) -> int | None:
    """Return the start time of a process on this machine, in clock ticks; None if unknown.

    Process ids are reused; together with its start time an id identifies a process.
    """
    stat = _proc_stat(pid)
    return int(stat[19]) if stat else None


def stopped(pid: int) -> bool | None:
    """Whether a process is stopped: by Ctrl-Z, by SIGSTOP, or with its suspended job.

    Returns None if /proc does not tell: it is missing, or hides the process, or the process ended.
    """
    stat = _proc_stat(pid)
    return stat[0] in "tT" if stat else None


def exists(pid: int) -> bool:
    """Whether there is a process of this id on this machine; this needs no /proc."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # the process is another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


def _proc_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on.

    Returns nothing if the process has ended, or if /proc is missing or hides the processes of other
    users.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def alive(directory: Path) -> bool:
    """Whether the newest attempt still runs, on this machine.

    Where /proc does not identify the process, the lock of the attempt does. Otherwise this function
    does not test the lock: taking it even briefly could make an attempt fail that is just starting.
    """
    owner = last(directory)
    if owner.host != socket.gethostname() or not exists(owner.pid):
        return False
    stat = _proc_stat(owner.pid)
    if stat and stat[0] in "ZX":
        return False
    if stat and owner.born is not None:
        return owner.born == born(owner.pid)
    if "born" not in owner.model_fields_set:
        with suppress(OSError):  # an attempt of an older version, which recorded no start time
            command = Path(f"/proc/{owner.pid}/cmdline").read_bytes()
            return os.fsencode(directory.name) in command
    return _locked(directory)


def _locked(directory: Path) -> bool:
    """Whether a process holds the lock of a directory; true if this user may not test it."""
    try:
        with files.opened(directory / rundir.LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def claim(directory: Path, job: str | None = None) -> int:
    """Become the owner of `directory`; return the number of this attempt.

    A SLURM job takes over from an earlier one: SLURM knows that the earlier job has ended, and its
    processes on a node that lost contact write nothing more once the number has changed.

    Args:
        directory: the stage directory.
        job: SLURM job id and restart count, if this process is part of a job.

    Raises:
        UserError: another process owns the directory.
    """
    handle = os.open(directory / rundir.LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # stays open
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
    inside = (path for path in directory.iterdir() if path.is_dir() and not path.is_symlink())
    disk.sweep(directory, *inside)
    number = last(directory).attempt + 1
    owner = Attempt(
        attempt=number, pid=os.getpid(), host=socket.gethostname(), time=time.time(),
        born=born(os.getpid()), job=job,
    )  # fmt: skip
    store.write(owner, directory)
    os.environ[NUMBER] = str(number)
    return number


def join(directory: Path, job: str, stopping: Callable[[], bool]) -> int:
    """Wait for the first node of this job to claim the directory; return the attempt number.

    Args:
        directory: the stage directory.
        job: the id of the job in SLURM.
        stopping: returns whether a signal asked this process to stop.

    Raises:
        UserError: the first node did not claim the directory within `PATIENCE`.
        Interrupted: `stopping` returned true.
    """
    until = time.monotonic() + PATIENCE
    while last(directory).job != job:
        if stopping():
            raise Interrupted
        if time.monotonic() > until:
            raise UserError(f"the first node of job {job} did not start within {PATIENCE:.0f} s")
        time.sleep(0.5)
    number = last(directory).attempt
    os.environ[NUMBER] = str(number)
    return number


def ending(directory: Path, number: int) -> Event | None:
    """Return the event that ended attempt `number`: `stopped`, or `failed` with the reason.

    If several processes failed, the one that refused its input or was killed made the others crash,
    so its event is returned. Among crashes the first one counts.
    """
    rows = [row for row in store.events(directory) if row.attempt == number]
    ends = [row for row in rows if row.event in ("stopped", "failed")]
    known = ("stopped", "input", "killed")
    kinds = {row.kind or row.event: row for row in reversed(ends)}
    return next((kinds[kind] for kind in known if kind in kinds), ends[0] if ends else None)


def own() -> int:
    """Return the number of the attempt that this process belongs to."""
    return int(os.environ[NUMBER])


def vanished(directory: Path) -> bool:
    """Whether the directory of a running stage was removed or replaced by something else."""
    return not rundir.there(directory / rundir.STAGE)


def check_owner(directory: Path, number: int) -> None:
    """Check that attempt `number` still owns `directory`.

    Raises:
        FileNotFoundError: the directory was removed.
        Superseded: a newer attempt owns it.
    """
    if vanished(directory):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
    newest = last(directory).attempt
    if newest != number:
        raise Superseded(
            f"attempt {number} of {directory.name} is superseded by attempt {newest}; "
            "it wrote nothing more and leaves"
        )
