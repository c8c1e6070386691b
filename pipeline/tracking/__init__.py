"""Weights & Biases as a mirror of the run directory, written from its files.

The files are the truth; whatever happens to W&B, nothing is lost and nothing waits. Whoever writes
the mirror is a process of its own, so that neither its start-up, nor its signal handling, nor a
server that does not answer can reach a training. `tracking=disabled` starts no process and imports
nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import elsewhere
from pipeline.display.outside import say
from pipeline.records.provenance import PROJECT
from pipeline.tracking.reach import server, unreachable

if TYPE_CHECKING:
    from pipeline.config import Disabled, Wandb


def mirror(run: Path, tracking: Wandb | Disabled) -> None:
    """Write the W&B run of a run directory; a failure is a notice, never an error."""
    if tracking.mode == "disabled":
        return
    mode = tracking.mode
    later = f"python -m pipeline.sync {run.name}{elsewhere(run.parent.parent)}"
    if mode == "online" and (reason := unreachable(server())):
        mode = "offline"
        say(f"note: {reason}; `{later}` sends the run later")
    log = run / "wandb.log"
    try:
        with log.open("ab") as output:
            subprocess.run(
                command(run, tracking, "--mode", mode),
                stdout=output, stderr=output, check=True, cwd=PROJECT, env=environment(run),
            )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        say(
            f"note: the W&B run could not be written (see {log}); no result is affected, and "
            f"`{later}` tries again"
        )


def follow(run: Path, tracking: Wandb | Disabled) -> subprocess.Popen[bytes] | None:
    """Begin to send the curves of a training while it goes on; None if nobody watches online."""
    if tracking.mode != "online":
        return None
    with (run / "wandb.log").open("ab") as output:
        return subprocess.Popen(
            command(run, tracking, "--follow", str(os.getpid())),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=PROJECT,
            env=environment(run), start_new_session=True,
        )  # fmt: skip


def environment(run: Path) -> dict[str, str]:
    """Return the environment of a mirror: what wandb keeps stays with the run, not in HOME."""
    kept = run / "wandb"
    own = {"WANDB_DIR": run, "WANDB_DATA_DIR": kept / "data", "WANDB_CACHE_DIR": kept / "cache"}
    return {name: str(path) for name, path in own.items()} | os.environ


def command(run: Path, tracking: Wandb, *more: str) -> list[str]:
    """Return the command line of a mirror."""
    entity = ["--entity", tracking.entity] if tracking.entity else []
    words = [sys.executable, "-m", "pipeline.tracking", str(run), "--project", tracking.project]
    return [*words, *entity, *more]
