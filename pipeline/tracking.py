"""Weights & Biases as a mirror of the run directory, written after the fact from its files.

The files are the truth; whatever happens to W&B, nothing is lost and nothing waits. The mirror is
a process of its own, so that neither its start-up, nor its signal handling, nor a server that does
not answer can reach a launch. `tracking=disabled` starts no process and imports nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline import rundir
from pipeline.config.base import STAGE_NAMES

if TYPE_CHECKING:
    from pipeline.config import Disabled, Wandb

PATIENCE = 90.0  # seconds the mirror may take before it is given up
NOT_METRICS = {"kind", "step", "epoch"}


def mirror(run: Path, tracking: Wandb | Disabled) -> None:
    """Write the W&B run of a run directory; a failure is a notice, never an error."""
    if tracking.mode == "disabled":
        return
    command = [sys.executable, "-m", "pipeline.tracking", str(run)]
    command += ["--mode", tracking.mode, "--project", tracking.project]
    command += ["--entity", tracking.entity] if tracking.entity else []
    log = run / "wandb.log"
    try:
        with log.open("wb") as output:
            subprocess.run(
                command, stdout=output, stderr=output, timeout=PATIENCE, check=True,
                cwd=Path(__file__).resolve().parent.parent,
            )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        print(f"note: the W&B run could not be written (see {log}); no result is affected")


def main(arguments: list[str] | None = None) -> int:
    """Replay a run directory into W&B."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description=main.__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mode", choices=["offline", "online"], default="offline")
    parser.add_argument("--project", default="dyrep")
    parser.add_argument("--entity")
    options = parser.parse_args(arguments)
    replay(options.run, options.mode, options.project, options.entity)
    return 0


def replay(run: Path, mode: Literal["offline", "online"], project: str, entity: str | None) -> None:
    """Send configuration, curves, growth events and results of a run as one W&B run."""
    import wandb

    facts = rundir.read_json(run / "run.json")
    for old in (run / "wandb").glob(f"offline-run-*-{facts['wandb']['id']}"):
        shutil.rmtree(old)  # written from these same files: one run, one directory
    session = wandb.init(
        id=facts["wandb"]["id"],
        name=facts["name"],
        group=facts["group"],
        project=project,
        entity=entity,
        dir=run,
        mode=mode,
        resume="allow" if mode == "online" else None,
        config={**yaml.safe_load((run / "config.yaml").read_text()), "source": facts["source"]},
        settings=wandb.Settings(
            disable_git=True,
            x_disable_stats=True,
            x_save_requirements=False,
            console="off",
            init_timeout=15,
            finish_timeout=30,
        ),
    )
    session.define_metric("step")
    session.define_metric("*", step_metric="step")
    for step, row in rows(run / "train" / rundir.HISTORY):
        session.log(row, step=step, commit=True)
    _growth(session, run / "train" / rundir.GROWTH)
    session.summary.update(dict(results(run)))
    session.finish()


def rows(history: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each step once, with the epoch's numbers beside the step that ended it."""
    pending: tuple[int, dict[str, Any]] | None = None
    for row in rundir.read_lines(history):
        prefix = "train" if row["kind"] == "step" else "epoch"
        values = {f"{prefix}/{k}": v for k, v in row.items() if k not in NOT_METRICS}
        values |= {"step": row["step"], "epoch": row["epoch"]}
        if pending and pending[0] == row["step"]:
            pending[1].update(values)
            continue
        if pending:
            yield pending
        pending = (row["step"], values)
    if pending:
        yield pending


def _growth(session: Any, growth: Path) -> None:
    import wandb

    events = list(rundir.read_lines(growth))
    if events:
        columns = ["epoch", "step", "action", "layer", "branches", "parameters", "flops"]
        data = [[str(e[c]) if c == "branches" else e[c] for c in columns] for e in events]
        session.summary["growth"] = wandb.Table(columns=columns, data=data)


def results(run: Path) -> Iterator[tuple[str, float]]:
    """Yield the headline numbers of every finished stage as `stage/metric`."""
    for stage in STAGE_NAMES:
        path = run / stage / rundir.RESULT
        if path.exists():
            for name, value in rundir.read_json(path)["metrics"].items():
                yield f"{stage}/{name}", value


if __name__ == "__main__":
    sys.exit(main())
