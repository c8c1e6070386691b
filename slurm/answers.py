"""Parse what squeue and sacct print, as text and as JSON; both give the same.

The fields of SLURM's JSON are the same from 23.11 on. How it writes numbers depends on the version
and on the site: `60`, or `{"set": true, "infinite": false, "number": 60}`.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from typing import Any

from slurm.entry import Entry
from slurm.notation import elements, minutes

Described = dict[str, Any]  # a job as SLURM's JSON describes it

# names and comments can contain line breaks, but not these control characters
_FIELD, _ENTRY = "\x1f", "\x1e\n"
_FIELDS = ("JobID", "JobArrayID", "State", "Reason", "RestartCnt", "StartTime", "EndTime",
           "NodeList", "Dependency", "Name", "Comment", "SubmitTime", "TimeLimit", "exit_code",
           "Requeue")  # fmt: skip
FORMAT = "--Format=" + ",".join(f"{field}:{_FIELD}" for field in _FIELDS) + _ENTRY[0]

# In JSON a job has a state and, after it, flags. As text SLURM prints one word: the first flag in
# this list that the job has, else its state.
FLAGS = ("COMPLETING", "STAGE_OUT", "CONFIGURING", "EXPEDITING", "RESIZING", "REQUEUED",
         "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STOPPED", "REVOKED", "RESV_DEL_HOLD",
         "SIGNALING")  # fmt: skip


def queue_from_text(text: str) -> dict[str, Entry]:
    """Return the jobs that `squeue --noheader --array` printed with FORMAT, by id.

    Raises:
        ValueError: a line cannot be parsed, and could be any job.
    """
    with _parsing():
        found = [_from_fields(*fields) for fields in _entries(text)]
        return {entry.id: entry for entry in found}


def left_out(text: str) -> list[str]:
    """Return ids of jobs that `squeue --array` may not have printed although they are pending.

    SLURM keeps elements that have not begun as one job. If they are at equal distances, squeue
    writes them as `3-199:2`, and then prints each but the last (in all versions up to 26.05).
    """
    jobs = defaultdict(list)
    for job, id, *_ in _entries(text):
        jobs[job].append(id.partition("_"))
    found = []
    for ids in jobs.values():
        numbers = sorted(int(number) for _, _, number in ids if number.isdigit())
        steps = {after - before for before, after in pairwise(numbers)}
        if len(numbers) >= 5 and len(steps) == 1 and steps != {1}:
            found.append(f"{ids[0][0]}_{numbers[-1] + steps.pop()}")
    return found


def queue_from_json(text: str) -> dict[str, Entry]:
    """Return the jobs that `squeue --array --json` printed, by id.

    Raises:
        ValueError: SLURM reports errors, or a job cannot be parsed.
    """
    with _parsing():
        return {entry.id: entry for job in _jobs(text) for entry in _from_job(job)}


def end_from_text(text: str) -> str | None:
    """Return the state that `sacct --noheader --parsable2 --format=State` printed; None if none."""
    return next(iter(text.split()), None)  # CANCELLED is followed by the user


def end_from_json(text: str) -> str | None:
    """Return the state of the job that `sacct --json` printed; None if it printed no job.

    Raises:
        ValueError: SLURM reports errors, or the job cannot be parsed.
    """
    with _parsing():
        return next((_state(job["state"]["current"]) for job in _jobs(text)), None)


@contextmanager
def _parsing() -> Iterator[None]:
    """Raise ValueError where a field is missing, or is not of its type."""
    try:
        yield
    except (AttributeError, LookupError, OSError, OverflowError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _entries(text: str) -> list[list[str]]:
    return [entry.split(_FIELD) for entry in text.split(_ENTRY) if entry]


def _from_fields(
    job: str, id: str, state: str, reason: str, restarts: str, start: str, end: str, nodes: str,
    dependency: str, name: str, comment: str, submitted: str, limit: str, code: str,
    requeues: str, nothing: str,
) -> Entry:  # fmt: skip
    return Entry(
        id=id,
        name=_word(name),
        state=state,
        reason=reason,
        restarts=int(restarts),
        start=_time(start),
        end=_time(end),
        nodes=nodes,
        after=_after(id, dependency),
        comment=_word(comment),
        submitted=_time(submitted),
        limit=minutes(limit),
        requeues=requeues != "0",
        signal=_signal(code),
    )


def _word(text: str) -> str:
    return "" if text == "(null)" else text


def _time(text: str) -> datetime | None:
    return None if text in ("N/A", "NONE", "Unknown") else datetime.fromisoformat(text)


def _signal(code: str) -> int:
    """Return the signal in an exit code: `0:9`, or before SLURM 23.02 a status as from wait()."""
    return int(code.rpartition(":")[2]) & 127


def _after(id: str, dependency: str) -> tuple[str, ...]:
    """Return the ids of the jobs that a job waits for."""
    index = f"_{id.partition('_')[2]}" if "_" in id else ""
    found = [
        first + (index if kind == "aftercorr" else "")
        for kind, first in re.findall(r"(after\w+):(\d+(?:_\d+)?)", dependency)
    ]
    return tuple(dict.fromkeys(found))


def _jobs(text: str) -> list[Described]:
    answer = json.loads(text)
    if answer.get("errors"):
        raise ValueError(f"SLURM reports {answer['errors']}")
    jobs: list[Described] = answer["jobs"]
    return jobs


def _from_job(job: Described) -> Iterator[Entry]:
    """Yield a job, or each of the pending elements that JSON has as one job."""
    limit, end = _number(job["time_limit"]), _moment(job["end_time"])
    if limit == math.inf and end and end > datetime.now():
        end = None  # SLURM reckons with a year
    for id in _ids(job):
        yield Entry(
            id=id,
            name=_string(job["name"]),
            state=_state(job["job_state"]),
            reason=_string(job["state_description"]) or _string(job["state_reason"]),
            restarts=_whole(job["restart_cnt"]),
            start=_moment(job["start_time"]),
            end=end,
            nodes=_string(job["nodes"]),
            after=_after(id, _string(job["dependency"])),
            comment=_string(job["comment"]),
            submitted=_moment(job["submit_time"]),
            limit=None if limit == math.inf else limit,
            requeues=bool(job["requeue"]),
            signal=int(_number(job["exit_code"]["signal"]["id"]) or 0),
        )


def _ids(job: Described) -> list[str]:
    pending = _string(job["array_task_string"])
    if pending:
        array = _whole(job["array_job_id"])
        return [f"{array}_{element}" for element in elements(pending)]
    if _number(job["array_task_id"]) is not None:
        return [f"{_whole(job['array_job_id'])}_{_whole(job['array_task_id'])}"]
    if _number(job["het_job_id"]):
        return [f"{_whole(job['het_job_id'])}+{_whole(job['het_job_offset'])}"]
    return [str(_whole(job["job_id"]))]


def _state(words: list[str]) -> str:
    return next((flag for flag in FLAGS if flag in words), words[0])


def _string(value: str | None) -> str:
    if not isinstance(value, str | None):
        raise TypeError(f"{value!r} is no string")
    return value or ""


def _number(value: Any) -> float | None:
    """Return a number, infinity, or None if the number is not set."""
    if isinstance(value, dict):
        if value["infinite"]:
            return math.inf
        value = value["number"] if value["set"] else None
    return value if value is None else float(value)  # "Infinity" where the site says `+complex`


def _whole(value: Any) -> int:
    number = _number(value)
    if number is None:
        raise ValueError("a number is not set")
    return int(number)


def _moment(value: Any) -> datetime | None:
    seconds = _number(value)
    return datetime.fromtimestamp(seconds) if seconds else None
