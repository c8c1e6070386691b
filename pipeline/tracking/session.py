"""Write one W&B run from the files of a run directory; one writer at a time.

Rows are sent with their step number, and the server drops steps that it already has. So sending
can be interrupted and repeated at any point. Errors are raised to the caller. They cannot reach a
training, which is another process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pipeline.display.errors import FAILED, UserError
from pipeline.display.outside import say
from pipeline.records import attempt, repeats, rundir, store
from pipeline.records.schemas import Run
from pipeline.tracking import rows
from pipeline.tracking.rows import Steps

LOCK = ".wandb.lock"
REPORT = "report.html"
PAUSE = 5.0  # seconds between two reads of the files of a training
PATIENCE = 20.0  # seconds to wait until the server has the last rows
LIMIT = 90  # seconds without progress before `expire` ends the process
EXIT = {"finished": 0, "failed": 1, "preempted": 75}
Mode = Literal["offline", "online"]


def replay(run: Path, mode: Mode, project: str, entity: str | None) -> int:
    """Update the W&B run of a run directory; return the number of new steps.

    Raises:
        UserError: a line of the history is damaged; all other rows were sent.
        wandb.Error: W&B refuses the run.
        TimeoutError: the server did not accept all rows in time; the next call sends the rest.
    """
    with only_writer(run, LOCK):
        # the new directory is written before the old one is removed
        old = list((run / "wandb").glob(f"offline-run-*-{_id(run)}"))
        session = _opened(run, mode, project, entity, finish_timeout=LIMIT - 10)
        steps = Steps(run / "train")
        sent = _send(session, steps, complete=rows.state(run) != "preempted")
        _close(session, run, mode)
        for directory in old if mode == "offline" else []:
            shutil.rmtree(directory)
    if steps.damaged:
        raise UserError(f"cannot be read: {', '.join(steps.damaged)}; all else was written")
    return sent


def follow(run: Path, project: str, entity: str | None, parent: int) -> None:
    """Send the rows of a running training, until the training or its process ends."""
    train = run / "train"
    with only_writer(run, LOCK):
        before = _children()
        session = _opened(run, "online", project, entity, finish_timeout=PATIENCE)
        core = _children() - before
        steps = Steps(train)
        while not over(run, parent):
            _send(session, steps, complete=False)
            _check_alive(core)
            time.sleep(PAUSE)
        _send(session, steps, complete=(train / rundir.RESULT).exists())
        _close(session, run, "online")


def over(run: Path, parent: int) -> bool:
    """Return whether a training or its process has ended."""
    return (run / "train" / rundir.RESULT).exists() or not attempt.exists(parent)


def _children() -> set[int]:
    """Return the process ids of this process's children; none if the kernel does not list them."""
    files = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in files for pid in path.read_text(encoding="utf-8").split()}


def _check_alive(core: set[int]) -> None:
    """Check that wandb's own process is alive: if it dies, queued rows are lost silently.

    Raises:
        ConnectionError: wandb's process has ended.
    """
    for pid in core:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG):
            raise ConnectionError("wandb's own process has ended")


def _id(run: Path) -> str:
    """Return the id of the W&B run; a repeated training gets a new one.

    W&B drops rows of steps that it has, so a second training needs a second W&B run.
    """
    own: str = store.read(Run, run).wandb["id"]
    number = repeats.count((run / "train").resolve())
    return f"{own}-{number}" if number else own


def _opened(run: Path, mode: Mode, project: str, entity: str | None, finish_timeout: float) -> Any:
    import wandb

    _progress()
    facts = store.read(Run, run)
    session = wandb.init(
        id=_id(run),
        name=facts.name,
        group=facts.group,
        tags=[facts.choices[name] for name in ("data", "model", "method")],
        project=project,
        entity=entity,
        dir=run,
        mode=mode,
        resume="allow" if mode == "online" else None,
        config=rows.settings(run),
        settings=wandb.Settings(
            disable_git=True,
            x_disable_stats=True,
            x_save_requirements=False,
            console="off",
            silent=True,
            init_timeout=15,
            finish_timeout=finish_timeout,
            finish_timeout_raises=True,
        ),
    )
    for axis in rows.AXES:
        session.define_metric(axis, hidden=True)
    session.define_metric("*", step_metric="step")
    session.define_metric("epoch/*", step_metric="epoch")
    session.define_metric("epoch/top1", step_metric="epoch", summary="max")
    return session


def _send(session: Any, steps: Steps, complete: bool) -> int:
    """Send the rows that the server does not have; return their number."""
    sent = 0
    for row in steps.new(complete):
        if row["step"] >= session.starting_step:  # the server has the steps before
            session.log(row, step=row["step"], commit=True)
            sent += 1
        _progress()
    return sent


def _close(session: Any, run: Path, mode: Mode) -> None:
    """Send the tables, results and state of the run."""
    import wandb

    _progress()
    tables = {
        "growth": rows.growth_table(run / "train"),
        "checkpoints": rows.checkpoint_table(run / "train"),
        "latency": rows.latency_table(run),
    }
    for name, (columns, content) in tables.items():
        if content:
            session.summary[name] = wandb.Table(columns=columns, data=content)
    session.summary.update(rows.results(run))
    if (run / REPORT).exists():  # with its plots of growth and latency
        session.summary["report"] = wandb.Html(str(run / REPORT), inject=False)
    try:
        _artifacts(session, run, mode)
    except Exception as error:  # losing the artifacts must not lose curves and metrics
        say(f"note: not all artifacts could be logged: {error}")
    end = rows.state(run)
    if end == "preempted":
        session.mark_preempting()
    _progress()
    session.finish(exit_code=EXIT[end])


def _artifacts(session: Any, run: Path, mode: Mode) -> None:
    """Log inputs and outputs as artifacts, by reference; only the report is copied."""
    import wandb

    run_id = _id(run)
    manifest = run / "prep" / "data" / rundir.MANIFEST
    if manifest.exists():
        fingerprint = manifest.resolve().parent.name
        data = wandb.Artifact(f"data-{fingerprint}", type="dataset")
        data.add_reference(manifest.resolve().as_uri())
        # offline, an artifact cannot be used; the configuration names the same inputs
        (session.use_artifact if mode == "online" else session.log_artifact)(data)
    for kind, files in {
        "trained": ("train/model.safetensors", "train/structure.json"),
        "fused": ("fuse/model.*", "fuse/MODEL_CARD.md", "fuse/preprocess.json", "fuse/fusion.json"),
    }.items():
        there = [path for file in files for path in sorted(run.glob(file))]
        if there:
            model = wandb.Artifact(f"{run_id}-{kind}", type="model")
            for path in there:
                model.add_reference(path.resolve().as_uri())
            session.log_artifact(model)
    if (run / REPORT).exists():
        page = wandb.Artifact(f"{run_id}-report", type="report")
        page.add_file(str(run / REPORT), policy="immutable")
        session.log_artifact(page)


def expire(after: int = LIMIT) -> None:
    """End this process with a message after `after` seconds without progress.

    Each later sign of progress starts a limit of `LIMIT` seconds.
    """
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(after)


def _progress() -> None:
    if signal.alarm(0):  # a limit was set
        signal.alarm(LIMIT)


def _give_up(*_: Any) -> None:
    say(f"error: no progress for {LIMIT} s; what was sent is kept", file=sys.stderr)
    os._exit(FAILED)  # at a normal exit wandb would wait for its process


@contextmanager
def only_writer(run: Path, lock: str) -> Iterator[None]:
    """Hold the lock of the run: two writers would overwrite each other's rows."""
    handle = os.open(run / lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
