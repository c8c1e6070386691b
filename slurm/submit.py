"""Hand jobs to SLURM: all of them or none, each once, and those that can be in one call.

Jobs alike in resources and in what they wait for become one array, so a sweep of a thousand runs
takes a handful of calls. A job that is waiting or running already is not submitted again: what
comes after it waits for that one. Intent is on record before each call, so a launcher that dies
in between leaves nothing behind that the next one would not find.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit import SlurmExecutor, helpers
from submitit.core.utils import FailedJobError, FailedSubmissionError

from slurm import scheduler
from slurm.job import CANCELLED, JOBS, Job, Resources, append, rows
from slurm.scheduler import Entry, Refused, Unreachable
from slurm.supervise import supervise

ATTEMPTS = 3
PAUSE = 5.0  # seconds between two


class Executor(SlurmExecutor):
    """submitit's, with our settings, and able to show what it would submit.

    Args:
        folder: shared by all nodes; a folder for each job is made in it.
        cwd: where the command runs and is imported from.
    """

    def __init__(self, folder: Path, cwd: Path, resources: Resources) -> None:
        python = shlex.quote(sys.executable)
        # a signal that arrives while Python starts would kill what has no handler yet
        super().__init__(folder, python=f"env --ignore-signal=TERM --ignore-signal=USR2 {python}")
        self.update_parameters(
            time=resources.time_limit,
            nodes=resources.nodes,
            ntasks_per_node=1,
            cpus_per_task=resources.cpus_per_node,
            gres=f"gpu:{resources.gpus_per_node}" if resources.gpus_per_node else None,
            mem=resources.memory,
            partition=resources.partition,
            account=resources.account,
            qos=resources.qos,
            constraint=resources.constraint,
            exclusive=resources.exclusive or None,
            signal_delay_s=resources.signal_seconds,
            wckey=None,
            stderr_to_stdout=True,
            # the rest of a job whose part on one node has failed would only hold its nodes
            srun_args=[
                f"--cpus-per-task={resources.cpus_per_node}",
                "--kill-on-bad-exit=1",
                *resources.srun,
            ],
            setup=[f"cd {shlex.quote(str(cwd))}", *resources.setup],
            teardown=[f"{python} -m slurm.requeue {shlex.quote(str(folder))}"],
        )
        self._more = {"requeue": True, "kill-on-invalid-dep": "yes", **resources.sbatch}

    def prepare(self, name: str, token: str, dependency: str, parallel: int) -> None:
        """Set what differs between calls."""
        self.update_parameters(
            job_name=name,
            dependency=dependency or None,
            array_parallelism=parallel,
            additional_parameters={"comment": token, **self._more},
        )

    def text(self, count: int = 1) -> str:
        """Return the batch script for a job, or for an array of `count`."""
        if count > 1:
            self.parameters["map_count"] = count
        text = self._make_submission_file_text(self._submitit_command_str, "")
        self.parameters.pop("map_count", None)
        return text


@dataclass(kw_only=True)
class Batch:
    """Jobs that are submitted in one call, and what they wait for."""

    jobs: list[Job]
    dependency: str  # in sbatch's words; empty if they wait for nothing


class Submission:
    """What one launch hands to SLURM.

    Args:
        folder: for submitit's files; shared by all nodes.
        cwd: where commands run.
        parallel: how many elements of an array may run at a time.
        longest: how many elements an array may have; SLURM's MaxArraySize.
    """

    def __init__(self, folder: Path, cwd: Path, parallel: int, longest: int) -> None:
        self.folder, self.cwd = folder, cwd
        self.parallel, self.longest = parallel, longest
        self.ids: dict[Path, str] = {}  # of each job's directory, attached ones included
        self.new: list[str] = []  # what scancel needs to take it all back

    def submit(self, jobs: Sequence[Job], labels: dict[Path, list[str]]) -> None:
        """Submit jobs that are not in the queue yet.

        Args:
            jobs: in an order in which each comes after those it waits for.
            labels: for each directory, what asked for it; noted in its record.

        Raises:
            Refused: SLURM says no; what was submitted before is taken back.
            Unreachable: it did not answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._attach(jobs, scheduler.mine(), labels)
        try:
            for level in levels([job for job in jobs if job.directory not in self.ids]):
                for batch in self.batches(level):
                    self._hand_over(batch, labels)
        except BaseException:
            self._take_back()
            raise

    def batches(self, level: Sequence[Job]) -> list[Batch]:
        """Group jobs that do not wait for each other: as many as possible into each array."""
        groups: dict[str, list[Job]] = {}
        for job in level:
            parents = [id.split("_")[0] for id in self._parents(job)]
            groups.setdefault(repr((job.resources, parents)), []).append(job)
        found = []
        for group in groups.values():
            for some in (group[i : i + self.longest] for i in range(0, len(group), self.longest)):
                found += self._arrays(some)
        return found

    def _arrays(self, group: list[Job]) -> list[Batch]:
        """Return a group as one array if one dependency is right for all, else one by one."""
        dependency = self._common(group)
        if dependency is None:
            return [Batch(jobs=[job], dependency=self._common([job]) or "") for job in group]
        return [Batch(jobs=group, dependency=dependency)]

    def _common(self, group: list[Job]) -> str | None:
        """Return the dependency that is right for every job of an array; None if there is none.

        Either all wait for the same job, or the first waits for the first element of an array, the
        second for the second, and so on: SLURM's `aftercorr`.
        """
        conditions = []
        for ids in zip(*map(self._parents, group), strict=True):
            array = ids[0].split("_")[0]
            if len(set(ids)) == 1:
                conditions.append(f"afterok:{ids[0]}")
            elif list(ids) == [f"{array}_{index}" for index in range(len(group))]:
                conditions.append(f"aftercorr:{array}")
            else:
                return None
        return ",".join(dict.fromkeys(conditions))

    def _parents(self, job: Job) -> list[str]:
        """Return the ids of the jobs in the queue that a job waits for."""
        return [self.ids[directory] for directory in job.after if directory in self.ids]

    def _attach(
        self, jobs: Iterable[Job], queue: dict[str, Entry], labels: dict[Path, list[str]]
    ) -> None:
        for job in jobs:
            entry = active(job.directory, queue)
            if entry:
                self.ids[job.directory] = entry.id
                row = {"event": "attached", "id": entry.id, "runs": labels[job.directory]}
                append(job.directory / JOBS, {"time": time.time(), **row})

    def _hand_over(self, batch: Batch, labels: dict[Path, list[str]]) -> None:
        token = secrets.token_hex(6)
        executor = Executor(self.folder, self.cwd, batch.jobs[0].resources)
        name = batch.jobs[0].name if len(batch.jobs) == 1 else f"{batch.jobs[0].name} …"
        executor.prepare(name, token, batch.dependency, self.parallel)
        for index, job in enumerate(batch.jobs):
            (job.directory / CANCELLED).unlink(missing_ok=True)
            row = {"event": "intent", "token": token, "index": index}
            append(job.directory / JOBS, {"time": time.time(), **row})
        ids = self._sbatch(executor, batch, token)
        for job, id in zip(batch.jobs, ids, strict=True):
            self.ids[job.directory] = id
            row = {"event": "submitted", "id": id, "token": token, "runs": labels[job.directory]}
            append(job.directory / JOBS, {"time": time.time(), **row})

    def _sbatch(self, executor: Executor, batch: Batch, token: str) -> list[str]:
        """Call sbatch; again if it did not answer, unless what it was asked for has come about.

        Raises:
            Refused: it says no.
            Unreachable: it did not answer, several times.
        """
        for left in reversed(range(ATTEMPTS)):
            try:
                with _outside_of_jobs(), contextlib.redirect_stderr(io.StringIO()):
                    made = executor.map_array(supervise, batch.jobs)
                self.new.append(made[0].job_id.split("_")[0])
                return [job.job_id for job in made]
            except (FailedJobError, FailedSubmissionError) as error:
                words = scheduler.said(str(error))
                if not any(away in words for away in scheduler.AWAY):
                    raise Refused(words) from None
                self._withdraw(token)
                if not left:
                    raise Unreachable(words) from None
                time.sleep(PAUSE)
        raise AssertionError("unreachable")

    def _withdraw(self, token: str) -> None:
        """Cancel what an sbatch that did not answer may have submitted nevertheless."""
        with contextlib.suppress(Unreachable):
            scheduler.cancel(id for id, e in scheduler.mine().items() if e.comment == token)

    def _take_back(self) -> None:
        with contextlib.suppress(Unreachable):
            scheduler.cancel(reversed(self.new))


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the job we may be in from sbatch, which would inherit its settings; not the cluster."""
    conf = os.environ.get("SLURM_CONF")
    with helpers.clean_env():
        if conf:
            os.environ["SLURM_CONF"] = conf
        yield


def levels(jobs: Iterable[Job]) -> list[list[Job]]:
    """Return jobs by their distance from those that wait for none of the others."""
    depth: dict[Path, int] = {}
    found: list[list[Job]] = []
    for job in jobs:
        depth[job.directory] = 1 + max((depth[p] for p in job.after if p in depth), default=-1)
        found += [[] for _ in range(depth[job.directory] + 1 - len(found))]
        found[depth[job.directory]].append(job)
    return found


def active(directory: Path, queue: dict[str, Entry]) -> Entry | None:
    """Return the job in the queue that works on a directory, if there is one.

    Ids alone do not tell: a cluster that was set up anew counts from 1 again.
    """
    for row in reversed(list(rows(directory / JOBS))):
        if row["event"] == "submitted":
            entry = queue.get(row["id"])
            return entry if entry and entry.active and entry.comment == row["token"] else None
        if row["event"] == "intent":  # the launcher died before it could note the id
            for id, entry in queue.items():
                last = int(id.split("_")[1]) if "_" in id else 0
                if entry.active and entry.comment == row["token"] and last == row["index"]:
                    return entry
            return None
    return None
