"""What is to run: commands with resources, in an order, each with a file that says it is finished.

A command is run once on each of its nodes and tells by its exit code how it ended: 0 done, or left
because another node's part did; 75 saved and stopped before the end; 2 refused its input, which no
repetition cures; anything else is a crash. While it runs it may keep `progress.json` in the job's
directory: `{"done": …, "total": …, "text": …, "time": …, "saved": …}`, where `saved` is how far a
repetition would begin. An attempt makes progress if `saved` increased. What else is on record in
the job's directory: `slurm.records`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from slurm import records

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 75


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job is given; `None` leaves a choice to the cluster.

    Args:
        gpus_per_node: SLURM is asked for none if it is 0.
        gpu_type: what SLURM calls the GPUs to be given; None for any.
        memory: of each node, in GB.
        time_limit: minutes.
        signal_seconds: how long before the time limit the job is asked to save and stop.
        comment: what the jobs' comment is to say; else it is a mark of ours.
        sbatch: further options of sbatch, by their long names.
        srun: further arguments of srun.
        setup: lines of shell that run before the command, on each job's first node.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
    cpus_per_node: int = 1
    memory: float | None = None
    time_limit: int
    signal_seconds: int = 120
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclusive: bool = False
    comment: str | None = None
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    srun: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command and what is needed to run it until it is finished, whatever comes in between.

    Args:
        name: what `squeue` shows.
        command: run once per node, in the directory the job is submitted from.
        directory: identifies the job; holds its records.
        finished: this file exists if and only if the job is finished.
        after: directories of the jobs that must be finished before.
        needs: files without which it does not start; the `finished` of those before.
        retries: how many attempts in a row may end without progress before it is given up.
    """

    name: str
    command: tuple[str, ...]
    directory: Path
    finished: Path
    after: tuple[Path, ...] = ()
    needs: tuple[Path, ...] = ()
    resources: Resources
    retries: int = 3

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled on purpose."""
        return (self.directory / records.CANCELLED).exists()

    def saved(self) -> int:
        """Return from where a repetition would begin; 0 if nothing is saved."""
        return records.saved(self.directory)
