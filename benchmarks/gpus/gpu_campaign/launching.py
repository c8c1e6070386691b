"""Launch the pipeline as users do, in processes of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import PROJECT
from pipeline.records import rundir


def launched(root: Path, name: str, *settings: str) -> Path:
    """Launch prep and train below a root and wait; return the directory of the training.

    Raises:
        RuntimeError: the launch failed; the message has the end of its output.
    """
    words = [f"root={root}", f"name={name}", "stage.run=[prep,train]", "tracking=disabled"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.launch", *words, *settings],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        lines = (done.stderr or done.stdout or "no word").strip().splitlines()
        print("\n".join(lines), flush=True)
        raise RuntimeError(f"launch of {name}: {lines[-1]}")
    return (rundir.run_dir(root, name) / "train").resolve()
