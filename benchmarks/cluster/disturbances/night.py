"""Run one round: watch the subjects on a cluster for events that must never happen."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.disturbances.subjects import Hashes, Subject
from slurm import marks, scheduler
from slurm.dev_cluster.config import Cluster
from slurm.entry import Entry
from slurm.queue import queued, submitted
from slurm.records import Event
from tests.cluster.job_under_test import commands
from tests.cluster.test_shells import HOSTILE

URGENT = "urgent"  # name of the jobs that preempt
ASK = 3.0  # seconds between two queries of the queue
AGREE = 20.0  # seconds within which an ended job is finished or in the queue again
PATIENCE = 240.0  # seconds to wait for SLURM's reaction
POLL = 0.2  # seconds between two checks


class Night:
    """A round of disturbed subjects, which are watched during every wait.

    Args:
        cluster: the cluster on which the subjects run.
        subjects: the subjects, not launched yet.
        chance: the source of all random choices.
    """

    def __init__(self, cluster: Cluster, subjects: Sequence[Subject], chance: random.Random):
        self.cluster, self.subjects, self.chance = cluster, subjects, chance
        self.faults: list[dict[str, Any]] = []
        self.ended: set[str] = set()  # subjects that SLURM ended for good, which is allowed
        self.forgetful = False  # whether slurmctld was killed before it could save its state
        self.administered: list[str] = []  # actions that SLURM leaves to an administrator
        self._queried = 0.0
        self._since: dict[tuple[str, str], float] = {}  # time at which a fault was first seen

    def launch(self, subject: Subject) -> None:
        """Launch a subject from a shell with some variables for SLURM's commands."""
        names = self.chance.sample(sorted(HOSTILE), self.chance.randrange(4))
        subject.cancelled = False
        subject.launch({name: HOSTILE[name] for name in names})

    def wait(self, condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
        """Watch until a condition is met; return whether it was met in time."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                return False
            self.watch()
            time.sleep(POLL)
        return True

    def pause(self, seconds: float) -> None:
        """Watch for some seconds."""
        self.wait(lambda: False, seconds)

    def watch(self) -> None:
        """Record the progress of the subjects; regularly compare them with SLURM's queue."""
        for subject in self.subjects:
            subject.look()
        if time.monotonic() - self._queried > ASK:
            self._queried = time.monotonic()
            with suppress(scheduler.Unreachable):
                queue = scheduler.user_jobs()
                self._administer(queue)
                self._check(queue)

    def entry(self, subject: Subject) -> Entry | None:
        """Return the job of a subject in the queue."""
        return scheduler.patient(lambda: subject.entry(scheduler.user_jobs()))

    def _administer(self, queue: dict[str, Entry]) -> None:
        """Follow the advice of `status` and `sinfo` if SLURM gave up on a node or a start."""
        for entry in queue.values():
            if entry.active and entry.held:
                self.administered.append(f"released job {entry.id}: {entry.reason}")
                scheduler.call("scontrol", "release", entry.id)
        drained = scheduler.call("sinfo", "-h", "-N", "-p", "low", "-t", "drained", "-o", "%N %E")
        for node, _, why in (line.partition(" ") for line in drained.splitlines()):
            self.administered.append(f"resumed node {node}: {why}")
            with suppress(scheduler.Refused):
                scheduler.call("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def _check(self, queue: dict[str, Entry]) -> None:
        known = set()
        for subject in self.subjects:
            for directory, finished in subject.directories().items():
                found = queued(directory, queue)
                ids = {entry.id for entry, _ in found}
                heads = [entry for entry, first in found if first not in ids]
                known |= ids
                lost = not (finished or heads or subject.cancelled)
                if self._lasts(subject, f"lost {directory.name}", lost):
                    self._lost(subject, directory, queue)
                if self._lasts(subject, f"two jobs of {directory.name}", len(heads) > 1):
                    self._fault("doubled", subject, jobs=[entry.id for entry in heads])
            if isinstance(subject, Hashes):
                alive = len(commands(subject.main)) > 1
                if self._lasts(subject, "two processes", alive):
                    self._fault("doubled", subject, processes=commands(subject.main))
        strange = [e.id for e in queue.values() if e.active and e.id not in known]
        strange = [id for id in strange if queue[id].name != URGENT]
        if self._lasts(None, "strange", bool(strange)):
            self._fault("doubled", None, jobs=strange)

    def _lasts(self, subject: Subject | None, what: str, seen: bool) -> bool:
        """Whether an observation has lasted for `AGREE` seconds; true only once."""
        key = (subject.name if subject else "", what)
        if not seen:
            self._since.pop(key, None)
            return False
        now = time.monotonic()
        if now - self._since.setdefault(key, now) < AGREE:
            return False
        self._since[key] = float("inf")
        return True

    def _lost(self, subject: Subject, directory: Path, queue: dict[str, Entry]) -> None:
        """Launch a lost subject again; its loss is a fault unless SLURM ended or forgot the job."""
        if subject.name in self.ended:
            self.ended.remove(subject.name)
        elif self.forgetful and (what := _forgotten(directory, queue)):
            subject.blame("forgotten")
            self.administered.append(f"launched again, for a killed slurmctld forgot {what}")
        else:
            self._fault("lost", subject, job=directory.name)
        for key in [key for key in self._since if key[0] == subject.name]:
            del self._since[key]
        self.launch(subject)

    def _fault(self, what: str, subject: Subject | None, **facts: object) -> None:
        causes = sorted(set().union(*subject.causes.values())) if subject else []
        name = subject.name if subject else None
        self.faults.append({"fault": what, "subject": name, "causes": causes, **facts})


def _forgotten(directory: Path, queue: dict[str, Entry]) -> str | None:
    """Return what a killed controller has forgotten; it remembers ended jobs for an hour."""
    last = submitted(directory)[-1]
    entry = queue.get(last.id)
    if entry is None or not marks.known(entry, last):
        return f"job {last.id}"
    *_, event = [None, *Event.read(directory)]
    if event and (event.event, event.job, event.restart) == ("requeued", entry.id, entry.restarts):
        return f"the requeue of job {entry.id}"
    return None
