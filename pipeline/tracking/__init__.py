"""Mirror the run directory to Weights & Biases, TensorBoard and CSV, from its files.

The files are complete without W&B. A separate process writes each mirror, so its start-up, its
signal handling and a server that does not answer cannot disturb a training. `tracking=disabled`
without `tracking.also` starts no process and imports nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.display.outside import say
from pipeline.records.named import elsewhere
from pipeline.records.provenance import PROJECT
from pipeline.tracking.reach import server, unreachable

if TYPE_CHECKING:
    from pipeline.config import Disabled, Wandb


def mirror(run: Path, tracking: Wandb | Disabled) -> None:
    """Write all mirrors of a run directory; a failure prints a notice and raises nothing."""
    if tracking.also:
        words = curves_command(run, tracking)
        _write(run, "curves", words, "launch again with the same name")
    if tracking.mode == "disabled":
        return
    mode = tracking.mode
    later = f"python -m pipeline.sync {run.name}{elsewhere(run.parent.parent)}"
    if mode == "online" and (reason := unreachable(server())):
        mode = "offline"
        say(f"note: {reason}; `{later}` sends the run later")
    _write(run, "wandb", command(run, tracking, "--mode", mode), f"`{later}` tries again")


WHAT = {"wandb": "W&B run", "curves": "CSV or TensorBoard files"}


def _write(run: Path, name: str, words: list[str], cure: str) -> None:
    """Run the process that writes a mirror, with its output in `NAME.log`."""
    log = run / f"{name}.log"
    try:
        with log.open("ab") as output:
            subprocess.run(
                words, stdout=output, stderr=output, check=True, cwd=PROJECT, env=environment(run)
            )
    except (OSError, subprocess.SubprocessError):
        say(
            f"note: the {WHAT[name]} could not be written (see {log}); no result is affected, and "
            f"{cure}"
        )


def follow(run: Path, tracking: Wandb | Disabled) -> list[subprocess.Popen[bytes]]:
    """Start the processes that mirror a training while it runs; return them."""
    parent = ["--follow", str(os.getpid())]
    found = []
    if tracking.mode == "online":
        found.append(_start(run, "wandb", command(run, tracking, *parent)))
    if tracking.also:
        found.append(_start(run, "curves", [*curves_command(run, tracking), *parent]))
    return found


def _start(run: Path, name: str, words: list[str]) -> subprocess.Popen[bytes]:
    with (run / f"{name}.log").open("ab") as output:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=PROJECT,
            env=environment(run), start_new_session=True,
        )  # fmt: skip


def environment(run: Path) -> dict[str, str]:
    """Return the environment of a mirror process: wandb keeps its files in the run, not in HOME."""
    kept = run / "wandb"
    own = {"WANDB_DIR": run, "WANDB_DATA_DIR": kept / "data", "WANDB_CACHE_DIR": kept / "cache"}
    return {name: str(path) for name, path in own.items()} | os.environ


def command(run: Path, tracking: Wandb, *more: str) -> list[str]:
    """Return the command line of a mirror."""
    entity = ["--entity", tracking.entity] if tracking.entity else []
    words = [sys.executable, "-m", "pipeline.tracking", str(run), "--project", tracking.project]
    return [*words, *entity, *more]


def curves_command(run: Path, tracking: Wandb | Disabled) -> list[str]:
    """Return the command line that writes CSV and event files."""
    return [sys.executable, "-m", "pipeline.tracking", str(run), "--curves", *tracking.also]
