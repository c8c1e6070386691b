"""Queue successors in advance, for clusters where preemption cancels a job for good.

A launch queues one successor with each job. A successor that starts queues the next one, by
`python -m slurm.successor` in its batch script.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from slurm import marks, scheduler, site
from slurm.job import Job
from slurm.queue import queued, submitted
from slurm.records import Submission
from slurm.sbatch import Executor, submitted_with
from slurm.scheduler import Refused, Unreachable
from slurm.supervise import Allocation, refusal


def succeed(job: Job, first: str, folder: Path, cwd: Path, final: int, named: bool = False) -> str:
    """Queue a successor of job `first`, which runs if that job ends unfinished.

    SLURM removes the successor from the queue when the first job succeeds.

    Args:
        job: the job to continue.
        first: id of the job to succeed.
        folder: folder for submitit's files.
        cwd: working directory of the command.
        final: exit code of a job on a node that does not see the folder; see `site.final`.
        named: whether the job name contains the mark, too; see `slurm.marks`.
    """
    token = secrets.token_hex(6)
    executor = Executor(folder, cwd, job.resources, succession=True, final=final)
    executor.prepare(job.name, token, f"afternotok:{first}", 1, named)
    (id,) = executor.hand_over([job], token, first)
    row = Submission(event="submitted", id=id, token=token, successor_of=first, user=os.geteuid())
    row.note(job.directory)
    if named:
        marks.read_back({job.directory: row})
    return id


def either(first: str, successor: str) -> str:
    """Return the sbatch dependency on the success of either a job or its successor."""
    return f"afterok:{first}?afterok:{successor}"


def main(folder: Path) -> int:
    """Queue a successor of the current job if it has none; dependents then wait for either."""
    (job, first), here = submitted_with(folder), Allocation.here()
    if job.finished.exists():
        return _let_go(here.id)
    if refusal(job, first):
        return 0
    try:
        queue = scheduler.user_jobs()
        if any(before == here.id for _, before in queued(job.directory, queue)):
            return 0
        own = [row for row in submitted(job.directory) if row.id == here.id and row.id in queue]
        named = not any(marks.COMMENT in marks.kept(queue[row.id], row.token) for row in own)
        final = site.final(1, site.config())
        id = succeed(job, here.id, folder, Path.cwd(), final, named)
        for entry in queue.values():
            if here.id in entry.after:
                change = f"Dependency={either(here.id, id)}"
                scheduler.call("scontrol", "update", f"JobId={entry.id}", change)
    except (Refused, Unreachable) as error:
        print(f"no successor is queued: {error}", flush=True)
        return 1
    return 0


def _let_go(id: str) -> int:
    """Release the jobs that wait for a finished job, which could be preempted before its end."""
    try:
        for entry in scheduler.user_jobs().values():
            if id in entry.after:
                scheduler.call("scontrol", "update", f"JobId={entry.id}", "Dependency=")
    except (Refused, Unreachable) as error:
        print(f"what waits for a finished job may be cancelled: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
