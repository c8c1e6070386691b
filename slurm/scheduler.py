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
from functools import cache
from pathlib import Path
from typing import TypeVar

from slurm import answers, shell
from slurm.entry import ENDED, KILLED, Entry

T = TypeVar("T")
Parse = Callable[[str], T]

TIMEOUT = 60.0  # seconds for one command
KILL_WAIT = 30.0  # seconds between SIGTERM and SIGKILL when SLURM ends a job, by default
# errors without an answer; a controller that is shutting down may have carried out the request
AWAY = ("Unable to contact", "Connection refused", "Socket timed out", "Communication connection",
        "Communication shutdown", "Message send failure", "Message receive failure",
        "Unexpected message received", "Insane message length", "Header lengths are longer",
        "Protocol authentication error", "backup controller in standby",
        "Zero Bytes were transmitted", "Resource temporarily unavailable",
        "temporarily unable to accept")  # fmt: skip


class Unreachable(Exception):
    """SLURM does not answer; nothing is known about the job."""


class Refused(Exception):
    """SLURM refused; the message contains SLURM's own."""


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
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            env=shell.clean(),
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} did not answer within {TIMEOUT:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    words = error_line(done.stderr)
    if "configuration source" in words or "slurm.conf" in words:
        raise Refused("no SLURM configuration was found here; set SLURM_CONF to its slurm.conf")
    raise (Unreachable if any(away in words for away in AWAY) else Refused)(words)


def error_line(stderr: str) -> str:
    """Return the errors that a SLURM command printed, as one line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in stderr.strip().splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


_QUEUE = ("squeue", "--noheader", "--array", "--all", "--states=all")
_NO_SUCH_JOB = "Invalid job id"
_text_only: set[str] = set()  # commands whose JSON cannot be had here


@cache
def _has_json() -> bool:
    """Whether --json of this SLURM can be relied on; False if its version is not known.

    Before 24.05.1 squeue prints the jobs of all users, whichever are asked for.
    """
    version = re.search(r"(\d+)\.(\d+)\.(\d+)", call("squeue", "--version"))
    return version is not None and tuple(map(int, version.groups())) >= (24, 5, 1)


def _query(
    command: tuple[str, ...], text: tuple[str, ...], from_json: Parse[T], from_text: Parse[T]
) -> T:
    """Return SLURM's answer, from its JSON if possible, else from its text.

    If a command's JSON fails or cannot be parsed, and its text can be, this process asks for text
    from then on: SLURM can be built without JSON, and its next version may change the fields.

    Raises:
        Refused: the command fails.
        Unreachable: the controller does not answer, or its answer cannot be parsed.
    """
    name = command[0]
    if name not in _text_only and _has_json():
        try:
            return from_json(call(*command, "--json"))
        except Refused as error:
            if _NO_SUCH_JOB in str(error):
                raise
        except ValueError:
            pass
    answer = call(*command, *text)
    try:
        found = from_text(answer)
    except ValueError:
        raise Unreachable(f"{name}'s answer cannot be read: {answer.strip()[:100]!r}") from None
    _text_only.add(name)
    return found


def _squeue(which: str, from_text: Parse[dict[str, Entry]]) -> dict[str, Entry]:
    return _query((*_QUEUE, which), (answers.FORMAT,), answers.queue_from_json, from_text)


def user_jobs() -> dict[str, Entry]:
    """Return this user's jobs that the controller still knows, by id.

    Raises:
        Unreachable: the controller does not answer.
    """
    return _squeue("--me", _complete)


def _complete(text: str) -> dict[str, Entry]:
    """Return the jobs in an answer in text and, asked for by id, those that squeue left out."""
    return answers.queue_from_text(text) | known(answers.left_out(text))


def find(job: str) -> Entry | None:
    """Return one job, or None if the controller does not know it (any more).

    Raises:
        Unreachable: the controller does not answer.
    """
    return known([job]).get(job)


def known(ids: Sequence[str]) -> dict[str, Entry]:
    """Return the jobs, among those with the given ids, that the controller knows; of any user.

    Raises:
        Unreachable: the controller does not answer.
    """
    found: dict[str, Entry] = {}
    for some in (ids[i : i + 500] for i in range(0, len(ids), 500)):
        try:
            found |= _squeue(f"--jobs={','.join(some)}", answers.queue_from_text)
        except Refused as error:
            if _NO_SUCH_JOB not in str(error):
                raise Unreachable(str(error)) from None  # the jobs may exist
    return found


def end(job: str) -> str | None:
    """Return how a job ended: COMPLETED, PREEMPTED, KILLED, …; None if that is unknown.

    Raises:
        Unreachable: neither controller nor accounting answers, or accounting has no answer yet.
    """
    entry = find(job)
    if entry and not entry.active:
        killed = entry.state == "FAILED" and entry.signal == signal.SIGKILL
        return KILLED if killed else entry.state
    query = ("sacct", "--allocations", f"--jobs={job}")
    text = ("--noheader", "--parsable2", "--format=State")
    try:
        state = _query(query, text, answers.end_from_json, answers.end_from_text)
    except Refused:  # the site has no accounting
        return None
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
    begun, printed = time.monotonic(), -math.inf
    while True:
        try:
            return ask()
        except Unreachable as error:
            now = time.monotonic()
            if now - begun > seconds:
                raise
            if now - printed > 60:
                printed = now
                print(f"SLURM does not answer ({error}); asking again", flush=True)
            # at first often: SLURM's commands retry by themselves, and KillWait may be running
            time.sleep(1 if now - begun < KILL_WAIT else 5)
