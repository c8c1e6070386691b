"""Call sbatch through submitit: apply our settings, return the script, handle lost answers."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from submitit import SlurmExecutor, helpers
from submitit.core.utils import (
    DelayedSubmission,
    FailedJobError,
    FailedSubmissionError,
    JobPaths,
)
from submitit.slurm.slurm import SlurmJobEnvironment

from slurm import marks, scheduler, shell
from slurm.job import Job, Resources
from slurm.queue import LOCK
from slurm.scheduler import Refused, Unreachable
from slurm.supervise import MARK, supervise

OURS = {"array", "chdir", "clusters", "dependency", "error", "job-name", "kill-on-invalid-dep",
        "no-requeue", "open-mode", "output", "parsable", "quiet", "requeue", "signal", "test-only",
        "wait", "wrap"}  # fmt: skip
FIELDS = {"account", "comment", "constraint", "cpus-per-task", "exclusive", "gres", "mem", "nodes",
          "ntasks-per-node", "partition", "qos", "time"}  # fmt: skip
ATTEMPTS = 3
PAUSE = 5.0  # seconds between two calls


class Executor(SlurmExecutor):
    """Submitit's executor with our settings; can also return the script without submitting it.

    Args:
        folder: a folder that all nodes can see; each job gets a folder in it.
        cwd: working directory of the command, from which Python imports.
        succession: whether a job queues its next successor when it starts.
        final: exit code of a job on a node that does not see the folder; see `site.final`.
    """

    def __init__(
        self, folder: Path, cwd: Path, resources: Resources, succession: bool = False,
        final: int = 1,
    ) -> None:  # fmt: skip
        python = shlex.quote(sys.executable)
        where = shlex.quote(str(folder))
        decide = f"{python} -m slurm.requeue {where}"
        # a killed decision is repeated, as the kernel may kill any process when memory runs out
        again = f"for _ in 1 2 3; do {decide} && code=0 || code=$?; [ $code = 137 ] || break; done"
        # a node that does not see the folder cannot decide; SLURM must not repeat its exit code
        unseen = f"[ -e {where}/{LOCK} ] || code={final}"
        succeed = [f"{python} -m slurm.successor {where} || true"] if succession else []
        # while Python starts, it has no handlers yet, and a signal would kill it
        super().__init__(folder, python=f"env --ignore-signal=TERM --ignore-signal=USR2 {python}")
        self.update_parameters(
            time=resources.time_limit,
            nodes=resources.nodes,
            ntasks_per_node=1,
            cpus_per_task=resources.cpus_per_node,
            gres=_gres(resources),
            mem=resources.memory and f"{round(1024 * resources.memory)}M",
            partition=resources.partition,
            account=resources.account,
            qos=resources.qos,
            constraint=resources.constraint,
            exclusive=resources.exclusive or None,
            signal_delay_s=resources.signal_seconds,
            wckey=None,
            stderr_to_stdout=True,
            # kill-on-bad-exit: after a failure on one node, the others would only be held
            srun_args=[
                "--export=ALL",  # the script's variables, whatever the user's shell says
                f"--cpus-per-task={resources.cpus_per_node}",
                "--kill-on-bad-exit=1",
                *resources.srun,
            ],
            # the trap comes first, so that it runs whatever ends the script, even `set -e` in setup
            setup=[
                f"trap {shlex.quote(f'{again}; {unseen}; exit $code')} EXIT",
                f"export {MARK}=$(date +%s.%N)-$$",
                f"cd {shlex.quote(str(cwd))}",
                "unset PYTHONSAFEPATH",  # so that Python imports from cwd
                *resources.setup,
                "",  # a backslash at the end of the setup must not join what follows
                *succeed,
            ],
        )
        self._comment = resources.comment
        self._more = {"requeue": True, "kill-on-invalid-dep": "yes", **resources.sbatch}

    def prepare(
        self, name: str, token: str, dependency: str, parallel: int, named: bool = False
    ) -> None:
        """Set the parameters that differ between calls.

        Args:
            name: job name.
            token: mark of the jobs; it becomes their comment unless the user sets a comment.
            dependency: the dependency in sbatch's notation.
            parallel: largest number of elements of an array that run at the same time.
            named: whether the job name contains the mark as well.
        """
        self.update_parameters(
            job_name=marks.named(name, token) if named or self._comment else name,
            dependency=dependency or None,
            array_parallelism=parallel,
            additional_parameters={"comment": self._comment or token, **self._more},
        )

    def text(self, count: int = 1) -> str:
        """Return the batch script for a job, or for an array of `count`."""
        if count > 1:
            self.parameters["map_count"] = count
        text = self._make_submission_file_text(self._submitit_command_str, "")
        self.parameters.pop("map_count", None)
        return text

    def hand_over(self, jobs: Sequence[Job], token: str, first: str | None = None) -> list[str]:
        """Submit a job, or several as one array; return their ids.

        If sbatch does not answer, the jobs that it may nevertheless have submitted are cancelled,
        and sbatch is called again. If the caller is interrupted, such jobs are cancelled, too.

        Args:
            jobs: the jobs to supervise.
            token: the mark with which the jobs are submitted.
            first: id of the job that the jobs succeed, if they are successors.

        Raises:
            Refused: SLURM refuses the jobs.
            Unreachable: SLURM did not answer several times.
        """
        for left in reversed(range(ATTEMPTS)):
            try:
                with _outside_of_jobs(), contextlib.redirect_stderr(io.StringIO()):
                    made = self.map_array(supervise, jobs, [first] * len(jobs))
                return [job.job_id for job in made]
            except FailedJobError as error:
                words = scheduler.error_line(str(error))
                if not any(away in words for away in scheduler.AWAY):
                    raise Refused(words) from None
                if left:
                    time.sleep(PAUSE)
                _withdraw(token)
            except FailedSubmissionError as error:  # the job is submitted, but its id is unknown
                _withdraw(token)
                raise Refused(scheduler.error_line(str(error))) from None
            except KeyboardInterrupt:
                _withdraw(token)
                raise
        raise Unreachable(words)


def _gres(resources: Resources) -> str | None:
    """Return the GPUs in the notation of `sbatch --gres`; None without GPUs."""
    kind = [resources.gpu_type] if resources.gpu_type else []
    words = ["gpu", *kind, str(resources.gpus_per_node)]
    return ":".join(words) if resources.gpus_per_node else None


def _withdraw(token: str) -> None:
    scheduler.cancel(id for id, entry in scheduler.user_jobs().items() if marks.kept(entry, token))


def submitted_with(folder: Path) -> tuple[Job, str | None]:
    """Return the job of the current batch script, and the id of the job that it succeeds."""
    paths = JobPaths(folder, SlurmJobEnvironment().job_id)
    job, first = DelayedSubmission.load(paths.submitted_pickle).args
    return job, first


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the surrounding job from sbatch, which would inherit its settings."""
    kept = {name: os.environ[name] for name in shell.KEPT & os.environ.keys()}
    with helpers.clean_env():
        os.environ.update(kept)
        yield
