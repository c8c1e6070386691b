"""Submit jobs to SLURM: all or none, each once, with as few sbatch calls as possible.

Jobs with the same resources and dependencies become one array, so a sweep of a thousand runs takes
a handful of calls. A job that is already pending or running is not submitted again; its dependents
wait for the existing job. The intent is recorded before each call. So if a launcher dies during the
call, the next launch finds the jobs that it submitted.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm import marks, private, scheduler
from slurm.entry import Entry
from slurm.job import Job, Resources
from slurm.preflight import cancels, room
from slurm.queue import active, alone, forgotten, queued, settled
from slurm.records import CANCELLED
from slurm.records import Submission as Record
from slurm.sbatch import Executor
from slurm.scheduler import Refused, Unreachable
from slurm.successor import either, succeed


@dataclass(kw_only=True)
class Batch:
    """Jobs that are submitted in one sbatch call, and their dependency."""

    jobs: list[Job]
    dependency: str  # in sbatch's notation; empty without dependency


class Submission:
    """The jobs that one launch submits to SLURM.

    If preemption cancels jobs for good, each job is submitted by itself, with a successor that runs
    if the job is preempted.

    Args:
        folder: folder for submitit's files; shared by all nodes, closed to other users.
        cwd: working directory of the commands.
        parallel: largest number of array elements that may run at a time.
        longest: largest number of elements of an array; see `preflight.longest_array`.
        final: exit code of a job on a node that does not see the folder; see `site.final`.
        named: whether job names contain a mark; needed if the site changes comments.
    """

    def __init__(
        self,
        folder: Path,
        cwd: Path,
        *,
        parallel: int,
        longest: int,
        final: int,
        named: bool = False,
    ) -> None:
        self.folder, self.cwd = folder, cwd
        self.parallel, self.longest, self.final = parallel, longest, final
        self.ids: dict[Path, str] = {}  # by directory, attached jobs included
        self.attached: set[Path] = set()  # jobs that were in the queue before this launch
        self.kept: list[str] = []  # where SLURM keeps the marks; known once a job was read back
        self._named = named
        self._successors: dict[Path, str] = {}
        self._above: dict[Path, set[Path]] = {}  # direct and indirect dependencies
        self._new: list[str] = []  # ids to cancel if a later call fails

    def submit(
        self,
        jobs: Sequence[Job],
        labels: dict[Path, list[str]],
        prepare: Callable[[Job], None] = lambda job: None,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Submit the jobs that are not in the queue yet, while holding the lock of all launches.

        Args:
            jobs: the jobs, each after those that it waits for.
            labels: the runs that use a job, by its directory; recorded with the submission.
            prepare: called with each job just before it is submitted.
            begin: called first under the lock; may refuse the launch.

        Raises:
            Refused: SLURM refuses a job; the jobs submitted before are cancelled.
            PermissionError: the folder belongs to another user.
            Unreachable: SLURM did not answer.
        """
        private.own(self.folder)  # jobs unpickle the files in it
        with alone(self.folder):
            begin()
            self._attach(jobs, settled(jobs), labels)
            new = [job for job in jobs if job.directory not in self.ids]
            room(len(new) + sum(cancels(job.resources) for job in new))
            for job in new:
                prepare(job)
            try:
                if lost := self._hand_over_all(new, labels):
                    print(f"SLURM took job {lost[0]} and forgot it; submitting again", flush=True)
                    self._begin_again(jobs, new)
                    if self._hand_over_all(new, labels):
                        raise Refused(f"SLURM takes jobs and forgets them, job {lost[0]} first")
            except BaseException as error:
                self._take_back(error)
                raise

    def executor(self, resources: Resources) -> Executor:
        """Return the sbatch wrapper for jobs with these resources."""
        succession = cancels(resources)
        return Executor(self.folder, self.cwd, resources, succession, self.final)

    def batches(self, level: Sequence[Job]) -> list[Batch]:
        """Group independent jobs into as few arrays as possible."""
        groups: dict[str, list[Job]] = {}
        for job in level:
            parents = [self.ids[path].split("_")[0] for path in self._parents(job)]
            single = job.directory if cancels(job.resources) else None
            groups.setdefault(repr((job.resources, parents, single)), []).append(job)
        found = []
        for group in groups.values():
            for some in (group[i : i + self.longest] for i in range(0, len(group), self.longest)):
                found += self._arrays(some)
        return found

    def _arrays(self, group: list[Job]) -> list[Batch]:
        """Return a group as one array if one dependency fits all jobs, else as single jobs."""
        dependency = self._common(group)
        if dependency is None:
            return [Batch(jobs=[job], dependency=self._common([job]) or "") for job in group]
        return [Batch(jobs=group, dependency=dependency)]

    def _common(self, group: list[Job]) -> str | None:
        """Return the dependency that fits every job of an array; None if there is none.

        Either all jobs wait for the same job, or each waits for the element of the same number in
        another array: SLURM's `aftercorr`.
        """
        conditions = []
        for parents in zip(*map(self._parents, group), strict=True):
            ids = [self.ids[path] for path in parents]
            array = ids[0].split("_")[0]
            if len(set(ids)) == 1:
                successor = self._successors.get(parents[0])
                conditions.append(either(ids[0], successor) if successor else f"afterok:{ids[0]}")
            elif ids == [f"{array}_{index}" for index in range(len(group))]:
                conditions.append(f"aftercorr:{array}")
            else:
                return None
        if len(conditions) > 1 and any("?" in condition for condition in conditions):
            raise Refused("where preemption cancels jobs, each may wait for one other only")
        return ",".join(dict.fromkeys(conditions))

    def _parents(self, job: Job) -> list[Path]:
        """Return the queued jobs that a job waits for directly."""
        waits = [path for path in job.after if path in self.ids]
        implied = set().union(*(self._above.get(path, set()) for path in waits))
        self._above[job.directory] = implied | set(waits)
        return [path for path in waits if path not in implied]

    def _attach(
        self, jobs: Iterable[Job], queue: dict[str, Entry], labels: dict[Path, list[str]]
    ) -> None:
        for job in jobs:
            entry = active(job.directory, queue)
            if entry:
                (job.directory / CANCELLED).unlink(missing_ok=True)
                self.ids[job.directory] = entry.id
                self.attached.add(job.directory)
                for other, first in queued(job.directory, queue):
                    if first == entry.id:
                        self._successors[job.directory] = other.id
                row = Record(event="attached", id=entry.id, runs=labels[job.directory])
                row.note(job.directory)

    def _hand_over_all(self, jobs: list[Job], labels: dict[Path, list[str]]) -> list[str]:
        """Submit jobs; return the ids of those that SLURM has forgotten.

        A controller that is killed, or replaced by its backup, forgets the jobs that it accepted in
        the last seconds. It refuses a job that depends on a forgotten one.
        """
        try:
            for level in levels(jobs):
                for batch in self.batches(level):
                    self._hand_over(batch, labels)
        except Refused:
            if lost := self._lost(jobs):
                return lost
            raise
        try:
            return self._lost(jobs)
        except Unreachable as error:
            print(f"SLURM took the jobs; whether it keeps them is not known ({error})", flush=True)
            return []

    def _lost(self, jobs: list[Job]) -> list[str]:
        ids = (self.ids, self._successors)
        given = [(j, each[j.directory]) for j in jobs for each in ids if j.directory in each]
        lost = forgotten(given) if given else []
        gone = {id.partition("_")[0] for id in lost}  # SLURM gives these to other jobs
        self._new = [id for id in self._new if id not in gone]
        return lost

    def _begin_again(self, jobs: Sequence[Job], new: list[Job]) -> None:
        """Cancel the new jobs that SLURM did not forget, and wait until they are gone."""
        scheduler.cancel(reversed(self._new))
        settled(jobs)
        self._new.clear()
        for job in new:
            self.ids.pop(job.directory, None)
            self._successors.pop(job.directory, None)

    def _hand_over(self, batch: Batch, labels: dict[Path, list[str]]) -> None:
        token = secrets.token_hex(6)
        executor = self.executor(batch.jobs[0].resources)
        name = batch.jobs[0].name if len(batch.jobs) == 1 else f"{batch.jobs[0].name} …"
        executor.prepare(name, token, batch.dependency, self.parallel, self._named)
        for index, job in enumerate(batch.jobs):
            (job.directory / CANCELLED).unlink(missing_ok=True)
            Record(event="intent", token=token, index=index).note(job.directory)
        ids = executor.hand_over(batch.jobs, token)
        self._new.append(ids[0].split("_")[0])
        rows = {}
        for job, id in zip(batch.jobs, ids, strict=True):
            self.ids[job.directory] = id
            row = Record(
                event="submitted", id=id, token=token, runs=labels[job.directory], user=os.geteuid()
            )
            row.note(job.directory)
            rows[job.directory] = row
        if not self.kept:
            self.kept = marks.read_back(rows)
            self._named |= not self.kept
        for job, id in zip(batch.jobs, ids, strict=True):
            if cancels(job.resources):
                self._successors[job.directory] = succeed(
                    job, id, self.folder, self.cwd, self.final, self._named
                )
                self._new.append(self._successors[job.directory])

    def _take_back(self, error: BaseException) -> None:
        try:
            scheduler.cancel(reversed(self._new))
        except (Refused, Unreachable):
            error.add_note(f"take back what is in the queue: scancel {' '.join(self._new)}")


def levels(jobs: Iterable[Job]) -> list[list[Job]]:
    """Return jobs in levels: a job is one level above the highest job that it waits for."""
    depth: dict[Path, int] = {}
    found: list[list[Job]] = []
    for job in jobs:
        depth[job.directory] = 1 + max((depth[p] for p in job.after if p in depth), default=-1)
        found += [[] for _ in range(depth[job.directory] + 1 - len(found))]
        found[depth[job.directory]].append(job)
    return found
