"""Define a job: a command, its resources and dependencies, and the file that marks its end.

The command runs once on each node of the job. Its exit code says how it ended. 0: finished, or
ended because the command on another node did. 75: saved and stopped early. 2: refused its input,
which a repetition cannot cure. Any other code: a crash. A running command may write
`progress.json` in the job's directory: `{"done": …, "total": …, "text": …, "time": …, "saved": …}`,
where `saved` is the point from which a repetition would continue. An attempt makes progress if
`saved` increased.
`slurm.records` describes the other files in that directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from slurm import records

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 75


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of a job; None leaves a choice to the cluster.

    Args:
        gpus_per_node: 0 requests none.
        gpu_type: SLURM's name of the GPU type; None accepts any.
        memory: GB per node.
        time_limit: minutes.
        signal_seconds: seconds before the time limit at which SLURM signals to save and stop.
        comment: the user's job comment; without one, the comment is our mark.
        sbatch: further sbatch options, by their long names.
        srun: further srun arguments.
        setup: shell lines that run before the command, on the first node of each job.
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
    """A command, and what is needed to run it until it is finished, through any interruption.

    Args:
        name: job name in `squeue`.
        command: runs once per node, in the directory from which the job is submitted.
        directory: identifies the job and holds its records.
        finished: file that exists if and only if the job is finished.
        after: directories of the jobs that must finish first.
        needs: files without which the command does not start: `finished` of those jobs.
        retries: number of requeues from the same save, after crashes or the time limit.
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
        """Whether a user cancelled the job."""
        return (self.directory / records.CANCELLED).exists()

    def saved(self) -> int:
        """Return the point from which a repetition would continue; 0 if nothing is saved."""
        return records.saved(self.directory)
