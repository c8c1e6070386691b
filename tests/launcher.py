"""The command line as users call it."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

SMALL = (
    "train.epochs=4",
    "method.adjust_interval=2",
    "latency.batch_sizes=[1,8]",
    "latency.repeats=10",
    "latency.also=[plain_folded,onnx,int8]",
)


class Launcher:
    """Calls `python -m pipeline.launch` as a user would, with its own root."""

    def __init__(self, root):
        self.root = root

    def __call__(self, *arguments, timeout=300, environment=None):
        return subprocess.run(
            self.command(*arguments),
            cwd=PROJECT, capture_output=True, text=True, timeout=timeout,
            env={**os.environ, "COLUMNS": "200", **(environment or {})},
        )  # fmt: skip

    def command(self, *arguments):
        return [sys.executable, "-m", "pipeline.launch", *arguments, f"root={self.root}"]


def module(name, *arguments, environment, timeout=120):
    """Run a module of the pipeline in an environment."""
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{name}", *map(str, arguments)],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def torchrun(script, processes=2, arguments=()):
    """Run a script in several processes that can import this project."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc-per-node={processes}", str(script), *map(str, arguments)],
        cwd=PROJECT, capture_output=True, text=True, timeout=180,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
