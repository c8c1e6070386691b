"""Define the subjects that are disturbed, chains of hashes and small trainings, and judge them."""

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import PROJECT
from benchmarks.chaos import SETTINGS, differences
from benchmarks.killing import rows
from pipeline.records import rundir, store
from slurm import scheduler
from slurm.entry import Entry
from slurm.queue import active, queued
from slurm.records import CANCELLED, EVENTS
from tests.cluster.job_under_test import Chain

STEPS = 3  # an attempt that made so many steps is working
LINKS = 5000  # steps of a chain
LIMIT = 60  # time limit of a job, minutes


class Subject(ABC):
    """Work that is launched, disturbed, and launched again after a cancel.

    Only attempts that made a step count. `causes` has the disturbances of an attempt, `reached` its
    progress, both by the index of the attempt.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.cancelled = False
        self.causes: dict[int, set[str]] = {}
        self.reached: dict[int, int] = {}
        self._blamed = (-1, 0)  # attempt and its progress at the last disturbance

    @abstractmethod
    def launch(self, shell: Mapping[str, str]) -> None:
        """Launch the subject, or launch it again, with these variables in the shell."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the subject as a user does."""

    @abstractmethod
    def directories(self) -> dict[Path, bool]:
        """Return the directories of the subject's jobs, each with whether the job is finished."""

    @abstractmethod
    def attempts(self) -> list[tuple[int, float]]:
        """Return each attempt's first step, and the time at which it began."""

    @abstractmethod
    def hurry(self) -> None:
        """Make the subject end soon, because nothing will disturb it any more."""

    @abstractmethod
    def judge(self) -> list[str]:
        """Return the differences between its result and that of undisturbed work."""

    @property
    def main(self) -> Path:
        """The directory of the job that is disturbed."""
        return next(iter(self.directories()))

    @property
    def done(self) -> bool:
        """Whether all jobs of the subject are finished."""
        return all(self.directories().values())

    @property
    def works(self) -> bool:
        """Whether it has made a few steps since the last disturbance, and is not finished."""
        begun = self.attempts()
        if not begun or self.directories()[self.main]:
            return False
        number, (blamed, reached) = len(begun) - 1, self._blamed
        first = reached if number == blamed else begun[number][0]
        return self.reached.get(number, 0) >= first + STEPS

    def look(self) -> None:
        """Record the progress of the newest attempt."""
        begun = self.attempts()
        row = store.progress(self.main) if begun else None
        if row and row.time >= begun[-1][1]:  # otherwise the previous attempt wrote the row
            number = len(begun) - 1
            self.reached[number] = max(self.reached.get(number, 0), row.done)

    def blame(self, cause: str, entry: Entry | None = None) -> None:
        """Record the disturbance that is about to happen to the newest attempt.

        If the job was started after that attempt, the disturbance meets the next attempt, although
        that has made no step yet. SLURM's `entry` may know of a start that has recorded nothing.
        """
        begun = self.attempts()
        number = len(begun) - 1
        starts = [row["time"] for row in rows(self.main / EVENTS) if row["event"] == "began"]
        if entry and entry.state == "RUNNING" and entry.start:
            starts.append(entry.start.timestamp())
        if begun and starts and max(starts) > begun[-1][1]:
            number += 1
        self.causes.setdefault(number, set()).add(cause)
        self._blamed = (number, self.reached.get(number, 0))

    def entry(self, queue: dict[str, Entry]) -> Entry | None:
        """Return the subject's job in the queue that is working or will do so next."""
        return active(self.main, queue)

    def starts(self) -> int:
        """Return the number of times that SLURM started its main job."""
        return sum(row["event"] == "began" for row in rows(self.main / EVENTS))

    def repeated(self) -> list[tuple[set[str], int]]:
        """Return each attempt's disturbances and repeated steps, except for the last attempt."""
        begun = [step for step, _ in self.attempts()]
        return [
            (self.causes.get(number, set()), max(0, self.reached.get(number, 0) - after))
            for number, after in enumerate(begun[1:])
        ]


class Hashes(Subject):
    """A chain of hashes, and a job that waits for it."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        folder.mkdir(parents=True)
        self.chain = Chain(folder, steps=LINKS, time_limit=LIMIT, signal_seconds=120)

    def launch(self, shell: Mapping[str, str]) -> None:
        """Submit both jobs."""
        with exported(shell):
            self.chain.submit()

    def cancel(self) -> None:
        """Mark both jobs as cancelled, and cancel those in the queue."""
        queue = scheduler.user_jobs()
        for job in self.chain.jobs:
            (job.directory / CANCELLED).touch()
        found = [e.id for job in self.chain.jobs for e, _ in queued(job.directory, queue)]
        scheduler.cancel(reversed(found))

    def directories(self) -> dict[Path, bool]:
        """Return the directories of the chain and of the job that waits for it."""
        return {job.directory: job.finished.exists() for job in self.chain.jobs}

    def attempts(self) -> list[tuple[int, float]]:
        """Return the attempts that the chain recorded."""
        return [(row["begun"], row["time"]) for row in self.chain.attempts()]

    def hurry(self) -> None:
        """Let the chain make no more pauses between steps."""
        (self.main / "hurry").touch()

    def judge(self) -> list[str]:
        """Compare the last hash."""
        return [] if self.chain.right() else ["hash"]


class Digits(Subject):
    """A training on digits, one process on each node."""

    def __init__(self, name: str, folder: Path, nodes: int, calm: Path | None = None) -> None:
        super().__init__(name)
        self.root, self.nodes, self.calm = folder, nodes, calm

    def launch(self, shell: Mapping[str, str]) -> None:
        """Call `pipeline.launch`; the first time with all settings."""
        stages, *others = SETTINGS
        settings = (
            "cluster=slurm", "cluster.cpus_per_process=1", f"cluster.nodes={self.nodes}",
            f"cluster.time_limit={LIMIT}", "model.widths=[[8],[16]]", *others,
        )  # fmt: skip
        words = (f"root={self.root}", "name=run", stages)
        again = (self.root / "runs").exists()
        self._call("launch", *words, *(() if again else settings), **shell)

    def cancel(self) -> None:
        """Call `pipeline.cancel`."""
        self._call("cancel", "run", f"--root={self.root}")

    def _call(self, command: str, *words: str, **shell: str) -> None:
        subprocess.run(
            [sys.executable, "-m", f"pipeline.{command}", *words], cwd=PROJECT, check=True,
            env=os.environ | shell, stdout=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip

    def directories(self) -> dict[Path, bool]:
        """Return the directories of the training and of the stage that prepares its data."""
        stages = [(self.root / "runs" / "run" / name).resolve() for name in ("train", "prep")]
        return {stage: (stage / rundir.RESULT).exists() for stage in stages}

    def attempts(self) -> list[tuple[int, float]]:
        """Return the attempts that recorded a first step."""
        first = [row for row in store.events(self.main) if row.event == "first_step"]
        return [(row.step - 1, row.time) for row in first]

    def hurry(self) -> None:
        """Do nothing, because nothing makes a training faster."""

    def judge(self) -> list[str]:
        """Compare weights, history and growth, bit by bit."""
        assert self.calm
        return differences(self.calm, self.main)


@contextmanager
def exported(shell: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the body of the `with` statement."""
    before = os.environ.copy()
    os.environ.update(shell)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
