"""Run the body of a stage in this process: its context, its failures, its result.

`result.json` is written last, after all promised outputs were checked.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from pipeline.contract import interrupt
from pipeline.contract.stage import Context, Stage
from pipeline.contract.table import STAGES
from pipeline.custom.code import enable
from pipeline.display import limits
from pipeline.display.errors import (
    BAD_INPUT,
    DONE,
    FAILED,
    REFUSALS,
    STOPPED,
    Interrupted,
    NoNumber,
    NoResult,
    UserError,
    from_os_error,
    gist,
)
from pipeline.display.masking import mask
from pipeline.display.outside import say
from pipeline.execution import ending
from pipeline.records import attempt, disk, rundir, store
from pipeline.records.schemas import Output, Question, Result, Where


def run(directory: Path) -> int:
    """Run the stage of a directory in this process; return the exit code."""
    question = read(Question, directory)
    return _body(STAGES[question.stage], directory, question)


def read(kind: type[store.R], directory: Path) -> store.R:
    """Return a record of a stage directory.

    Raises:
        UserError: `directory` is not a stage directory, or the record is damaged.
    """
    try:
        return store.read(kind, directory)
    except OSError:
        raise UserError(
            f"{directory} holds no {kind.FILE}; give the directory of a stage, as made by "
            "python -m pipeline.launch"
        ) from None


def _body(stage: Stage, directory: Path, question: Question) -> int:
    rank = int(os.environ.get("RANK", "0"))
    context = _context(stage, directory, question)
    if rank:
        redirect(rundir.log_file(directory, context.attempt, rank))
    elif context.attempt == 1 or not _has_started(context):
        before = store.progress(directory)  # progress of the attempt before
        context.event(
            "started", pid=os.getpid(), **({"last_progress": before.time} if before else {})
        )
    try:
        _enable_code(stage, context)
        metrics = import_module(f"pipeline.stages.{stage.name}").run(context)
        if rank == 0:
            _check_numbers(stage, metrics)
            _finish(context, metrics)
    except Interrupted:
        return _stopped(context, rank)
    except Exception as error:
        return _failed(context, error)
    return DONE


def _context(stage: Stage, directory: Path, question: Question) -> Context:
    """Build the context of the stage body: the sections it reads, `where.yaml`, and no more."""
    from pipeline.config import sections

    where = read(Where, directory).values()
    parents = {
        name: rundir.stage_dir(directory.parent.parent, name, fingerprint)
        for name, fingerprint in question.parents.items()
    }
    return Context(
        stage=stage,
        dir=directory,
        root=directory.parent.parent,
        fingerprint=question.fingerprint,
        config=sections({**question.config, **where}),
        parents=parents,
        attempt=attempt.own(),
        repeat=question.again.get(stage.name, 0),
        stopping=interrupt.requested,
    )


def _enable_code(stage: Stage, context: Context) -> None:
    """Let Python import the user's own code for the network or the images that the stage reads."""
    config = context.config
    enable(config.model if "model" in stage.reads else config.data, context.root)


def _has_started(context: Context) -> bool:
    rows = store.events(context.dir)
    return any(row.event == "started" and row.attempt == context.attempt for row in rows)


def redirect(log: Path) -> None:
    """Redirect the output of this process to its own log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _stopped(context: Context, rank: int) -> int:
    if rank == 0:
        context.event("stopped")
        say(f"{context.stage.name}: stopped before the end, everything so far is saved")
    return STOPPED


def _failed(context: Context, error: Exception) -> int:
    if attempt.vanished(context.dir):
        if not context.stage.processes:  # otherwise the parent prints it
            say(ending.vanished(context.dir), file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, OSError) and error.errno in REFUSALS:
        error = from_os_error(error, context.dir)
    elif not isinstance(error, UserError | NoResult) and (cure := limits.cure(gist(error))):
        error = UserError(f"{gist(error)}; {cure} and launch again")
    explained = isinstance(error, UserError | NoResult)
    refused = isinstance(error, UserError)
    message = str(error) if refused else mask(_message(error))
    noted = _note(context, kind="input" if refused else "error", message=message)
    if not explained:
        traceback.print_exception(error)
    elif not (noted and context.stage.processes):  # otherwise the parent prints it at the end
        say(f"error: {message}", file=sys.stderr)
    return BAD_INPUT if refused else FAILED


def _message(error: Exception) -> str:
    """Return an error's message for the events; the log has its traceback, except a NoResult's."""
    return f"{type(error).__name__}: {error}" if isinstance(error, NoResult) else gist(error)


def _note(context: Context, kind: str, message: str) -> bool:
    """Record a failure; return whether that succeeded, as a full disk can prevent it."""
    with suppress(OSError):
        context.event("failed", kind=kind, message=message)
        return True
    return False


def _check_numbers(stage: Stage, metrics: dict[str, float]) -> None:
    """Refuse a result that contains nan or infinity.

    Raises:
        NoNumber: a metric is nan or infinite; the message names it.
    """
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        cure = "; lower train.lr, or see docs/recovery.md" if stage.name == "train" else ""
        raise NoNumber(
            f"{stage.name} ended with a number that is not finite: {', '.join(bad)}{cure}"
        )


def _finish(context: Context, metrics: dict[str, float]) -> None:
    from pipeline.records.environment import describe

    result = Result(
        stage=context.stage.name,
        fingerprint=context.fingerprint,
        parents={name: path.name for name, path in context.parents.items()},
        attempts=context.attempt,
        seconds=_seconds(context),
        metrics=metrics,
        outputs=_outputs(context),
        environment=describe(),
    )
    context.check_owner()
    context.event("finished")
    store.write(result, context.dir)


def _seconds(context: Context) -> float:
    """Return the seconds spent in all attempts, each from its start to its last event."""
    spans: dict[int, tuple[float, float]] = {}
    for row in store.events(context.dir):
        first, _ = spans.get(row.attempt, (row.time, 0.0))
        spans[row.attempt] = (first, row.time)
    first, _ = spans[context.attempt]
    spans[context.attempt] = (first, time.time())
    # 0 if the clock was set back
    return round(sum(max(0.0, end - start) for start, end in spans.values()), 3)


def _outputs(context: Context) -> dict[str, Output]:
    """Return the size and hash of every output that the stage promised, by path.

    Raises:
        RuntimeError: a promised output is missing (a defect of the stage, not of its input).
    """
    found = {}
    for pattern in context.stage.outputs:
        paths = sorted(context.dir.glob(pattern))
        if not paths:
            raise RuntimeError(f"{context.stage.name} ended without its output {pattern}")
        for path in paths:
            found[path.name] = Output(
                path=str(path.relative_to(context.dir)),
                bytes=path.stat().st_size,
                sha256=disk.sha256(path),
            )
    return found
