"""Submit plans to SLURM: one job for each stage to run, even if several runs share the stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.syntax import Syntax
from rich.table import Table

import slurm.preflight
from pipeline.config import Config
from pipeline.config.cluster import Slurm
from pipeline.display.errors import Cancelled, Interrupted, StageFailed
from pipeline.display.masking import mask
from pipeline.display.outside import say, visible
from pipeline.display.terminal import Terminal
from pipeline.execution import resources
from pipeline.execution.code_snapshot import code_dir, freeze
from pipeline.planning import again, named_run
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import named, rundir
from pipeline.records.progress import Onlooker
from slurm import scheduler, site, wishes
from slurm.job import Job
from slurm.queue import active
from slurm.records import CANCELLED
from slurm.scheduler import Refused, Unreachable
from slurm.submit import Submission, levels

POLL = 5.0  # seconds between two calls of SLURM
AGREE = 60.0  # seconds in which the result of an ended job becomes visible here


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One run of a launch: its configuration, its plan, and its directory.

    Args:
        record: writes the run; called before its first stage begins, or under the lock of all
            launches, just before they submit.
    """

    config: Config
    plan: list[PlannedStage]
    record: Callable[[], None] = lambda: None

    @property
    def directory(self) -> Path:
        """The directory of the run, which users look into."""
        return rundir.run_dir(Path(self.config.root), self.config.name)

    @property
    def works(self) -> bool:
        """Whether any stage is to be executed."""
        return any(planned.runs for planned in self.plan)

    @property
    def remote(self) -> bool:
        """Whether jobs are to be submitted."""
        return self.works and self.config.cluster.name == "slurm"

    @property
    def report(self) -> Path:
        """The path of the run's report."""
        return self.directory / "report.html"


def _job(planned: PlannedStage, config: Config, unfinished: dict[str, PlannedStage]) -> Job:
    assert isinstance(config.cluster, Slurm)
    directory = planned.dir.resolve()
    parents = [unfinished[name] for name in planned.stage.parents if name in unfinished]
    return Job(
        name=f"{config.name}.{planned.stage.name}",
        command=(sys.executable, "-u", "-m", "pipeline.run", str(directory)),
        directory=directory,
        finished=directory / rundir.RESULT,
        after=tuple(parent.dir.resolve() for parent in parents),
        needs=tuple(parent.dir.resolve() / rundir.RESULT for parent in parents),
        resources=resources.of(config, planned.stage.name),
        retries=config.cluster.retries,
    )


def _jobs(launches: Iterable[Launch]) -> tuple[list[Job], dict[Path, list[str]]]:
    """Return the jobs of all runs, each once, and the runs that use each job."""
    jobs: dict[Path, Job] = {}
    labels: dict[Path, list[str]] = {}
    for launch in launches:
        unfinished: dict[str, PlannedStage] = {s.stage.name: s for s in launch.plan if s.runs}
        for planned in unfinished.values():
            job = _job(planned, launch.config, unfinished)
            jobs.setdefault(job.directory, job)
            labels.setdefault(job.directory, []).append(launch.config.name)
    return list(jobs.values()), labels


def _submission(launches: list[Launch]) -> Submission:
    cluster, root = launches[0].config.cluster, Path(launches[0].config.root)
    assert isinstance(cluster, Slurm)
    return Submission(
        folder=rundir.job_dir(root).resolve(),
        cwd=code_dir(root),
        parallel=cluster.max_parallel,
        longest=slurm.preflight.longest_array(),
        final=site.final(1, site.config()),
    )


def show(launch: Launch) -> None:
    """Print the batch scripts that a launch would submit, without writing anything."""
    try:
        submission = _submission([launch])
        for level in levels(_jobs([launch])[0]):
            for batch in submission.batches(level):
                job = batch.jobs[0]
                executor = submission.executor(job.resources)
                executor.prepare(job.name, "TOKEN", batch.dependency, submission.parallel)
                stage = job.name.rpartition(".")[2]
                submission.ids[job.directory] = f"JOB_ID_OF_{stage.upper()}"
                console = Terminal()
                console.rule(stage)
                script = mask(executor.text())
                if console.is_terminal:
                    console.print(
                        Syntax(script, "bash", background_color="default", word_wrap=True)
                    )
                else:  # without wrapped lines, as it would be submitted
                    print(visible(script))
    except (Refused, Unreachable) as error:
        raise resources.explained(error) from None


def submit(launches: list[Launch]) -> list[Path]:
    """Submit the unfinished stages of all runs, and print the next commands.

    Returns:
        The stage directories that are repeated.

    Raises:
        UserError: SLURM refused or did not answer; nothing stays in its queue.
    """
    jobs, labels = _jobs(launches)
    prepared = {
        planned.dir.resolve(): (planned, launch) for launch in launches for planned in launch.plan
    }

    def prepare(job: Job) -> None:
        planned, launch = prepared[job.directory]
        planned.dir.mkdir(parents=True, exist_ok=True)
        named_run.write_question(planned)
        named_run.write_where(planned, launch.config)

    repeated: list[Path] = []

    def begin() -> None:
        for launch in launches:
            launch.record()
        repeated.extend(again.set_aside(planned for launch in launches for planned in launch.plan))

    try:
        submission = _submission(launches)
        freeze(Path(launches[0].config.root))
        submission.submit(jobs, labels, prepare, begin)
    except (Refused, Unreachable) as error:
        raise resources.explained(error) from None
    for launch in launches:
        ids = {s.stage.name: submission.ids.get(s.dir.resolve(), "") for s in launch.plan}
        named_run.note_jobs(launch.directory, {stage: job for stage, job in ids.items() if job})
    _print_jobs(launches, submission)
    return repeated


def _print_jobs(launches: list[Launch], submission: Submission) -> None:
    console = Terminal()
    if len(launches) == 1:
        (launch,) = launches
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("stage", "job", "after"):
            table.add_column(column)
        ids = {s.stage.name: submission.ids.get(s.dir.resolve()) for s in launch.plan}
        for planned in launch.plan:
            if ids[planned.stage.name]:
                after = [ids[p] for p in planned.stage.parents if ids.get(p)]
                table.add_row(
                    planned.stage.name, ids[planned.stage.name], ", ".join(map(str, after))
                )
        console.print(table)
    if submission.attached:
        count = len(submission.attached)
        say(f"{count} in the queue before, with the settings they were submitted with")
    if variables := wishes.variables():
        say(mask(f"your shell has {' '.join(variables)}: obeyed where no setting says otherwise"))
    first = launches[0].config
    names = first.name if len(launches) == 1 else ""
    root = named.elsewhere(Path(first.root))
    runs = "" if names else f" of {len(launches)} runs"
    count = len(submission.ids)
    say(f"{count} job{'s' * (count != 1)}{runs} in the queue; next:")
    say(f"  python -m pipeline.status{names and f' {names}'}{root}")
    if names:
        say(f"  python -m pipeline.logs {names} -f{root}")
        say(f"  python -m pipeline.cancel {names}{root}")


def wait(launch: Launch) -> None:
    """Show the progress of a run until all its stages are finished.

    Raises:
        StageFailed: a stage ended without a result.
        Cancelled: `pipeline.cancel` stopped a stage.
        Interrupted: Ctrl-C; the jobs continue.
    """
    try:
        with Onlooker() as onlooker:
            for planned in launch.plan:
                if planned.runs:
                    onlooker.begin(planned.stage.name)
                    _wait(planned, onlooker)
    except KeyboardInterrupt:
        which = f"{launch.config.name}{named.elsewhere(Path(launch.config.root))}"
        raise Interrupted(
            f"the jobs continue; to see their status: python -m pipeline.status {which}; "
            f"stop them: python -m pipeline.cancel {which}"
        ) from None


def _wait(planned: PlannedStage, onlooker: Onlooker) -> None:
    polled, gone = 0.0, 0.0
    while not (planned.dir / rundir.RESULT).exists():
        onlooker.show(planned.dir)
        if time.monotonic() - polled > POLL:
            polled = time.monotonic()
            try:
                entry = active(planned.dir, scheduler.user_jobs())
            except (Refused, Unreachable):
                continue
            gone = 0.0 if entry else gone or time.monotonic()
        if gone and (planned.dir / CANCELLED).exists():
            raise Cancelled(f"{planned.stage.name} was cancelled; launch again to go on")
        if gone and time.monotonic() - gone > AGREE:
            raise StageFailed(
                f"{planned.stage.name} ended without a result; its logs: {planned.dir / 'logs'}"
            )
        time.sleep(0.5)
