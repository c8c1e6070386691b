"""Run the stages of a plan on this machine, one after the other, each in its own session.

In its own session a stage does not receive the terminal's Ctrl-C: the launcher requests the stop,
waits until the stage has saved, and says how to continue.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pipeline.config import Config
from pipeline.display import limits
from pipeline.display.errors import (
    BAD_INPUT,
    Cancelled,
    Interrupted,
    StageFailed,
    UserError,
    from_os_error,
)
from pipeline.planning.named_run import write_question, write_where
from pipeline.planning.plan import verify_outputs
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import attempt, disk, named, rundir, store
from pipeline.records.progress import Onlooker
from pipeline.records.provenance import PROJECT
from pipeline.records.schemas import Event, Submission
from slurm import scheduler
from slurm.place import unsupervised
from slurm.queue import active, submitted
from slurm.records import CANCELLED

TAIL = 20  # lines of a failed stage's log that are shown


def run_local(plan: list[PlannedStage], config: Config) -> None:
    """Run the stages that are not finished, in order.

    Raises:
        UserError: a stage refused its input.
        StageFailed: a stage ended without a result.
        Cancelled: `pipeline.cancel` stopped a stage.
        Interrupted: Ctrl-C or TERM; the stage that was running has saved and stopped.
    """
    wanted = [planned for planned in plan if planned.runs]
    for planned in wanted:
        _refuse_running(planned, config)
        _refuse_queued(planned, config)
    for planned in wanted:  # a mark made after this point is meant for this launch
        (planned.dir / CANCELLED).unlink(missing_ok=True)
    run = rundir.run_dir(Path(config.root), config.name)
    overtaken = (run / CANCELLED).exists()  # its marks of stages may have been removed just now
    with Onlooker() as onlooker:
        for planned in wanted:
            if overtaken or _cancelled(planned):
                raise Cancelled(
                    f"{planned.stage.name} was cancelled before it began; {_go_on(config)}"
                )
            _refuse_replaced(planned, config)
            onlooker.begin(planned.stage.name)
            stop_requested = _run(planned, config, onlooker)
            verify_outputs(planned.dir)
            _refuse_replaced(planned, config)
            if stop_requested and planned is not wanted[-1]:  # the stage finished nevertheless
                raise Interrupted


def _refuse_replaced(planned: PlannedStage, config: Config) -> None:
    """Refuse to go on if another launch that began at the same moment has taken the run's name."""
    link = rundir.run_dir(Path(config.root), config.name) / planned.stage.name
    if link.is_symlink() and os.path.realpath(link) != os.path.realpath(planned.dir):
        raise UserError(
            f"run '{config.name}' was launched with other settings at the same moment, and is now "
            f"that run; launch this one again with another name= (it goes on in {planned.dir.name})"
        )


def _cancelled(planned: PlannedStage) -> bool:
    return (planned.dir / CANCELLED).exists()


def _run(planned: PlannedStage, config: Config, onlooker: Onlooker) -> bool:
    """Run a stage; return whether it finished although a stop was requested."""
    planned.dir.mkdir(parents=True, exist_ok=True)
    write_question(planned)
    write_where(planned, config)
    (planned.dir / rundir.PROGRESS).unlink(missing_ok=True)
    number = attempt.last(planned.dir).attempt + 1
    log = rundir.log_file(planned.dir, number)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output, _stop_requests() as stops:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pipeline.run", str(planned.dir)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env=unsupervised(),  # inside a job, the job's variables are for another directory
            start_new_session=True,
        )
        started = Submission(time=time.time(), executor="local", pid=process.pid, run=config.name)
        try:
            store.note(started, planned.dir)
            _wait(process, planned, onlooker, stops)
        except BaseException:  # as on a full disk: what is reported as ended must not go on
            _terminate(process)
            raise
    if not (planned.dir / rundir.RESULT).exists():
        _explain(planned, config, log, process.returncode, bool(stops))
    return bool(stops)


def _refuse_running(planned: PlannedStage, config: Config) -> None:
    """Refuse to run beside another launch on this machine; `attempt.claim` decides finally."""
    if attempt.alive(planned.dir):
        where, owner = named.elsewhere(Path(config.root)), attempt.last(planned.dir)
        raise UserError(
            f"{planned.stage.name} is already running (pid {owner.pid}); "
            f"to follow it: python -m pipeline.logs {config.name} -f{where}; "
            f"to stop it: python -m pipeline.cancel {config.name}{where}"
        )


def _refuse_queued(planned: PlannedStage, config: Config) -> None:
    """Refuse to run beside a queued job, which would find its directory taken or changed."""
    if not submitted(planned.dir):
        return
    with suppress(scheduler.Refused, scheduler.Unreachable):
        entry = active(planned.dir, scheduler.user_jobs())
        if entry:
            raise UserError(
                f"{planned.stage.name} is job {entry.id} in SLURM's queue ({entry.state.lower()}); "
                f"wait for it, or first: python -m pipeline.cancel {config.name}"
                f"{named.elsewhere(Path(config.root))}"
            )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect the signals that request a stop, instead of dying from them."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    process: subprocess.Popen[bytes], planned: PlannedStage, onlooker: Onlooker, stops: list[int]
) -> None:
    """Wait for a stage; forward the first stop request to it, and kill it at the second.

    `pipeline.cancel` signals a stage directly; a stage that was just starting did not receive it.
    """
    passed_on, cancelled = 0, False
    while process.poll() is None:
        onlooker.show(planned.dir)
        if not cancelled and _cancelled(planned):
            cancelled = True
            _terminate(process)
        if len(stops) > passed_on:
            passed_on = len(stops)
            if passed_on == 1:
                onlooker.console.print(
                    f"stopping {planned.stage.name} after the current step; Ctrl-C again to kill it"
                )
                _terminate(process)
            else:
                os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    onlooker.show(planned.dir)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Ask a stage to stop; continue its processes if they are stopped, as by SIGSTOP."""
    process.send_signal(signal.SIGTERM)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)


def _death(code: int) -> str:
    """Return how a stage ended that could not record it itself."""
    if code >= 0:
        return f"exit code {code}"
    number = signal.Signals(-code)
    return "; ".join(filter(None, (f"killed by {number.name}", limits.cure_of_death(number))))


def _go_on(config: Config) -> str:
    return f"to go on: {named.go_on(rundir.run_dir(Path(config.root), config.name))}"


def _explain(
    planned: PlannedStage, config: Config, log: Path, code: int, stop_requested: bool
) -> None:
    """Raise the error for a stage that ended without a result.

    Raises:
        UserError: the stage refused its input, or its directory was removed.
        StageFailed: the stage failed or was stopped from outside; the message has its log's end.
        Cancelled: `pipeline.cancel` stopped it.
        Interrupted: this launch was asked to stop.
    """
    if stop_requested:
        raise Interrupted
    if _cancelled(planned):
        raise Cancelled(
            f"{planned.stage.name} was cancelled; what it had saved is kept; {_go_on(config)}"
        )
    if attempt.vanished(planned.dir):
        raise from_os_error(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), planned.dir)
    end = attempt.ending(planned.dir, attempt.last(planned.dir).attempt)
    if end is None and (refused := disk.refusal(planned.dir)):  # the stage could not record it
        raise refused
    end = end or Event(time=time.time(), event="failed", message=_death(code))
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    if end.kind == "input":
        raise UserError(end.message)
    if code == BAD_INPUT and lines:
        raise UserError(lines[-1].removeprefix("error: "))
    tail = "\n".join(f"  | {line}" for line in lines[-TAIL:])
    message = end.message.partition("\n")[0]
    why = "was stopped from outside and saved" if end.event == "stopped" else message
    where = rundir.shown(log)
    raise StageFailed(f"{tail}\n{planned.stage.name} did not finish: {why}; its log: {where}")
