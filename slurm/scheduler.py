"""Call SLURM's commands and parse their output; no other module starts one of them.

No answer from the controller, or one that cannot be parsed, does not mean that a job is gone:
`Unreachable` means that nothing is known, and callers must not conclude anything from it.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from slurm import shell
from slurm.notation import minutes

T = TypeVar("T")

TIMEOUT = 60.0  # seconds for one command
KILL_WAIT = 30.0  # seconds between SIGTERM and SIGKILL when SLURM ends a job, by default
# errors without an answer; a controller that is shutting down may have carried out the request
AWAY = ("Unable to contact", "Connection refused", "Socket timed out", "Communication connection",
        "Communication shutdown", "Message send failure", "Message receive failure",
        "Unexpected message received", "Insane message length", "Header lengths are longer",
        "Protocol authentication error", "backup controller in standby",
        "Zero Bytes were transmitted", "Resource temporarily unavailable",
        "temporarily unable to accept")  # fmt: skip
KILLED = "KILLED"  # our word for FAILED by a killed batch script, which could not decide anything
TAKEN = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", KILLED)  # final states of an interrupted job
HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
SUSPENDED = ("SUSPENDED", "STOPPED")  # the processes are stopped in place
ENDED = (*TAKEN, "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "REVOKED",
         "TIMEOUT")  # fmt: skip


_HELD = re.compile("[Hh]eld|JobHold")  # JobHeldUser, launch failed requeued held, …


class Unreachable(Exception):
    """SLURM does not answer; nothing is known about the job."""


class Refused(Exception):
    """SLURM refused; the message contains SLURM's own."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job, as reported by the controller.

    Args:
        id: `12`, or `12_3` for an element of an array; `12_[3-9]` for several pending ones.
        state: RUNNING, PENDING, COMPLETING, …
        reason: why the job is pending.
        restarts: number of requeues.
        start: start time, actual or expected.
        end: end time, actual or expected: by the time limit, later if the job was suspended,
            earlier if it is being preempted; None without limit.
        nodes: names of the job's nodes.
        after: ids of the jobs that it waits for.
        comment: the comment, set at submission or by the site.
        submitted: submit time.
        limit: time limit, minutes; None without a limit.
        requeues: whether SLURM may requeue the job.
        signal: the signal that ended the batch script; 0 if none did.
    """

    id: str
    name: str
    state: str
    reason: str
    restarts: int
    start: datetime | None
    end: datetime | None
    nodes: str
    after: tuple[str, ...]
    comment: str
    submitted: datetime | None = None
    limit: float | None = None
    requeues: bool = True
    signal: int = 0

    @property
    def active(self) -> bool:
        """Whether the job is pending, running or completing, so no other job may do its work."""
        return self.state not in ENDED

    @property
    def orphaned(self) -> bool:
        """Whether SLURM is ending the job because its batch script was killed."""
        return self.state == "COMPLETING" and self.signal == signal.SIGKILL

    @property
    def held(self) -> bool:
        """Whether the job is held until a release: by a user, or after a failed prolog."""
        return self.state in HELD or (self.state == "PENDING" and bool(_HELD.search(self.reason)))


def call(*command: str) -> str:
    """Return the standard output of a SLURM command.

    Raises:
        Refused: the command fails, or does not exist.
        Unreachable: the controller does not answer.
    """
    if shutil.which(command[0]) is None:
        raise Refused(f"there is no {command[0]} on this machine")
    conf = os.environ.get("SLURM_CONF")
    if conf and not Path(conf).exists():  # SLURM itself would search for it for a minute
        raise Refused(f"SLURM_CONF={conf} does not exist; set it to the cluster's slurm.conf")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, env=shell.clean()
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} did not answer within {TIMEOUT:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    words = said(done.stderr)
    if "configuration source" in words or "slurm.conf" in words:
        raise Refused("no SLURM configuration was found here; set SLURM_CONF to its slurm.conf")
    raise (Unreachable if any(away in words for away in AWAY) else Refused)(words)


def said(stderr: str) -> str:
    """Return the errors that a SLURM command printed, as one line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in stderr.strip().splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


# names and comments can contain line breaks, but not these control characters
_FIELD, _ENTRY = "\x1f", "\x1e\n"
_FIELDS = ("JobArrayID", "State", "Reason", "RestartCnt", "StartTime", "EndTime", "NodeList",
           "Dependency", "Name", "Comment", "SubmitTime", "TimeLimit", "exit_code",
           "Requeue")  # fmt: skip
_QUEUE = (
    "squeue", "--noheader", "--array", "--all", "--states=all",
    "--Format=" + ",".join(f"{field}:{_FIELD}" for field in _FIELDS) + _ENTRY[0],
)  # fmt: skip


def mine() -> dict[str, Entry]:
    """Return this user's jobs that the controller still knows, by id.

    Raises:
        Unreachable: the controller does not answer.
    """
    return _entries(call(*_QUEUE, "--me"))


def find(job: str) -> Entry | None:
    """Return one job, or None if the controller does not know it (any more).

    Raises:
        Unreachable: the controller does not answer.
    """
    try:
        found = _entries(call(*_QUEUE, f"--jobs={job}"))
    except Refused as error:
        if "Invalid job id" in str(error):
            return None
        raise Unreachable(str(error)) from None  # the job may exist
    return found.get(job)


def known(ids: Sequence[str]) -> dict[str, Entry]:
    """Return the jobs, among those with the given ids, that the controller knows; of any user.

    Raises:
        Unreachable: the controller does not answer.
    """
    found: dict[str, Entry] = {}
    for some in (ids[i : i + 500] for i in range(0, len(ids), 500)):
        try:
            found |= _entries(call(*_QUEUE, f"--jobs={','.join(some)}"))
        except Refused as error:
            if "Invalid job id" not in str(error):
                raise Unreachable(str(error)) from None  # the jobs may exist
    return found


def _entries(text: str) -> dict[str, Entry]:
    """Parse the output of squeue; return jobs by id.

    Raises:
        Unreachable: a line cannot be parsed, and could be any job.
    """
    try:
        found = [_entry(*entry.split(_FIELD)) for entry in text.split(_ENTRY) if entry]
    except (TypeError, ValueError):
        raise Unreachable(f"squeue's answer cannot be read: {text.strip()[:100]!r}") from None
    return {entry.id: entry for entry in found}


def _entry(
    job: str, state: str, reason: str, restarts: str, start: str, end: str, nodes: str,
    dependency: str, name: str, comment: str, submitted: str, limit: str, code: str,
    requeues: str, nothing: str,
) -> Entry:  # fmt: skip
    index = f"_{job.partition('_')[2]}" if "_" in job else ""
    after = [
        id + (index if kind == "aftercorr" else "")
        for kind, id in re.findall(r"(after\w+):(\d+(?:_\d+)?)", dependency)
    ]
    return Entry(
        id=job,
        name=name,
        state=state,
        reason=reason,
        restarts=int(restarts),
        start=_time(start),
        end=_time(end),
        nodes=nodes,
        after=tuple(dict.fromkeys(after)),
        comment=comment,
        submitted=_time(submitted),
        limit=minutes(limit),
        requeues=requeues != "0",
        signal=_signal(code),
    )


def _signal(code: str) -> int:
    """Return the signal in an exit code: `0:9`, or before SLURM 23.02 a status as from wait()."""
    return int(code.rpartition(":")[2]) & 127


def _time(text: str) -> datetime | None:
    return None if text in ("N/A", "NONE", "Unknown") else datetime.fromisoformat(text)


def end(job: str) -> str | None:
    """Return how a job ended: COMPLETED, PREEMPTED, KILLED, …; None if that is unknown.

    Raises:
        Unreachable: neither controller nor accounting answers, or accounting has no answer yet.
    """
    entry = find(job)
    if entry and not entry.active:
        killed = entry.state == "FAILED" and entry.signal == signal.SIGKILL
        return KILLED if killed else entry.state
    asked = ("--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={job}")
    try:
        told = call("sacct", *asked)
    except Refused:  # the site has no accounting
        return None
    state = next(iter(told.split()), None)  # CANCELLED is followed by the user
    if state is not None and state not in ENDED:
        raise Unreachable(f"accounting has job {job} as {state}, though it is not in the queue")
    return state


def requeue(job: str) -> None:
    """Requeue a running job.

    Raises:
        Refused: SLURM does not allow it.
        Unreachable: the controller does not answer.
    """
    call("scontrol", "requeue", job)


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs for good; jobs that have ended are skipped.

    Raises:
        Unreachable: the controller does not answer.
    """
    chosen = list(ids)
    for some in (chosen[i : i + 500] for i in range(0, len(chosen), 500)):
        call("scancel", "--quiet", *some)


def patient(ask: Callable[[], T], seconds: float = math.inf) -> T:
    """Call `ask` until SLURM answers; return its result.

    Raises:
        Unreachable: SLURM did not answer within `seconds`.
    """
    begun, told = time.monotonic(), -math.inf
    while True:
        try:
            return ask()
        except Unreachable as error:
            now = time.monotonic()
            if now - begun > seconds:
                raise
            if now - told > 60:
                told = now
                print(f"SLURM does not answer ({error}); asking again", flush=True)
            # at first often: SLURM's commands retry by themselves, and KillWait may be running
            time.sleep(1 if now - begun < KILL_WAIT else 5)
