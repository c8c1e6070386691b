"""Submit a light stand-in for a training, watch it, and disturb it.

The command of the job is `chain.py`: it works step by step, saves, and stops at a signal.
"""

import hashlib
import json
import sys
from pathlib import Path

from slurm import preflight, scheduler, site
from slurm.job import Job, Resources
from slurm.records import EVENTS, rows
from slurm.submit import Submission
from tests.cluster.real import call, wait_for
from tests.launcher import PROJECT

COMMAND = Path(__file__).with_name("chain.py")


class Chain:
    """A job that runs `chain.py`, and a job that depends on it."""

    def __init__(self, folder, steps=300, seconds=0.1, crash_at=None, time_limit=5, **resources):
        self.folder, self.steps = folder, steps
        more = [] if crash_at is None else ["--crash-at", str(crash_at)]
        resources = Resources(time_limit=time_limit, **{"signal_seconds": 10, **resources})
        self.job = self._job("work", steps, seconds, *more, resources=resources)
        self.next = self._job(
            "next", 1, 0, resources=Resources(time_limit=5), after=(self.job.directory,),
            needs=(self.job.finished,),
        )  # fmt: skip
        self.jobs = [self.job, self.next]

    def _job(self, name, steps, seconds, *more, **rest):
        directory = self.folder / name
        directory.mkdir()
        command = [sys.executable, COMMAND, directory, steps, seconds, *more]
        return Job(
            name=name, command=tuple(map(str, command)), directory=directory,
            finished=directory / "result.json", **rest,
        )  # fmt: skip

    def submit(self):
        submission = launched(self.folder)
        submission.submit(self.jobs, {job.directory: ["a run"] for job in self.jobs})
        self.ids = submission.ids
        self.id, self.next_id = (submission.ids[job.directory] for job in self.jobs)
        return self

    def attempts(self):
        return [row for row in rows(self.job.directory / "attempts.jsonl") if "begun" in row]

    def stops(self):
        return [
            row["stopped"]
            for row in rows(self.job.directory / "attempts.jsonl")
            if "stopped" in row
        ]

    def step(self):
        try:
            return json.loads((self.job.directory / "progress.json").read_text())["done"]
        except FileNotFoundError:
            return 0

    def working(self, attempt=1, steps=3):
        """Wait until the given attempt has done some steps."""

        def done():
            begun = self.attempts()
            return len(begun) >= attempt and self.step() >= begun[attempt - 1]["begun"] + steps

        wait_for(done)
        return self

    def state(self, which=None):
        entry = scheduler.find(which or self.id)
        return entry.state if entry else None

    def events(self, name):
        return [row for row in rows(self.job.directory / EVENTS) if row["event"] == name]

    def finished(self, seconds=90):
        """Wait until both jobs have ended, and check the result of the first."""
        (self.job.directory / "hurry").touch()  # the test disturbs the job no more
        wait_for(self.next.finished.exists, seconds)
        assert self.right()
        wait_for(lambda: self.state(self.next_id) == "COMPLETED")
        return self

    def right(self):
        """Return whether the result is that of an undisturbed run."""
        digest = ""
        for step in range(self.steps):
            digest = hashlib.sha256(f"{digest} {step}".encode()).hexdigest()
        return json.loads(self.job.finished.read_text()) == {"step": self.steps, "digest": digest}

    def lost_nothing(self):
        """Check that each attempt began with the step at which the one before had stopped."""
        begun = [row["begun"] for row in self.attempts()]
        assert begun == [0, *self.stops()], (begun, self.stops())
        return self


def launched(folder, parallel=64, longest=1000):
    """Return a submission as a launch makes it."""
    final = site.final(1, site.config())
    return Submission(folder / "slurm", PROJECT, parallel=parallel, longest=longest, final=final)


def update(**facts):
    preflight.preemption.cache_clear()  # a launch queries the mode once
    pairs = [f"{key}={value}" for key, value in facts.items()]
    call("scontrol", "update", "PartitionName=low", *pairs)


def preempt(tmp_path):
    """Submit a short job on all nodes, which preempts the jobs of the partition `low`."""
    return call(
        "sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive",
        f"--output={tmp_path}/high.log", "--wrap=sleep 1",
    )  # fmt: skip


def commands(directory):
    """Return the ids of the `chain.py` processes that work on a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(COMMAND).encode() in words and str(directory).encode() in words:
            found.append(int(process.name))
    return found
