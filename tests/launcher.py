"""Call the pipeline as users call it, and run scripts in several processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from pipeline import launch

PROJECT = Path(__file__).resolve().parents[1]

SMALL = (
    "method=dyrep",
    "train.epochs=4",
    "method.adjust_interval=2",
    "method.last_adjust_epoch=9",
    "latency.batch_sizes=[1,8]",
    "latency.repeats=10",
    "latency.also=[plain_folded,onnx,int8]",
)


class Launcher:
    """A launcher that runs `python -m pipeline.launch` as a user would, with a root of its own."""

    def __init__(self, root):
        self.root = root

    def __call__(self, *arguments, timeout=300, environment=None):
        return subprocess.run(
            self.command(*arguments),
            cwd=PROJECT, capture_output=True, text=True, timeout=timeout,
            env={**os.environ, "COLUMNS": "200", **(environment or {})},
        )  # fmt: skip

    def start(self, *arguments):
        """Start a launch in a session of its own; return its process without waiting."""
        return subprocess.Popen(
            self.command(*arguments), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def command(self, *arguments):
        return [sys.executable, "-m", "pipeline.launch", *arguments, f"root={self.root}"]


class Inside:
    """A launcher that calls `pipeline.launch` in this process, which takes a tenth of the time."""

    def __init__(self, root, monkeypatch, capsys):
        self.root, self._monkeypatch, self._capsys = root, monkeypatch, capsys

    def __call__(self, *arguments):
        """Return the exit code of a launch, its stdout and its stderr."""
        self._monkeypatch.setattr(sys, "argv", ["launch", *arguments, f"root={self.root}"])
        self._monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main() sets it; monkeypatch restores it
        code = launch.main()
        return code, *self._capsys.readouterr()


def wait_for(condition, process, seconds=120):
    """Wait until a condition is true; fail if the process ends first."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"the condition is still false after {seconds} s"
        time.sleep(0.02)


def module(name, *arguments, environment, timeout=120):
    """Run a module of the pipeline with the given environment variables."""
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{name}", *map(str, arguments)],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


RANKS = """
import os, runpy, sys
import torch._dynamo, torch.distributed, dyrep  # optimizers import torch._dynamo
count = int(sys.argv[1])
ranks = []
for rank in range(count):
    if not (child := os.fork()):
        os.environ["RANK"] = str(rank)
        runpy.run_path(sys.argv[2], run_name="__main__")
        os._exit(0)
    ranks.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in ranks]))
"""


def in_ranks(script, count=2):
    """Run a script as several ranks, forked from one process that has imported torch."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return subprocess.run(
        [sys.executable, "-c", RANKS, str(count), str(script)],
        cwd=PROJECT, capture_output=True, text=True, timeout=180,
        env={**os.environ, **world, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


IN_PROCESSES = """
import sys
from pipeline.contract import interrupt; from pipeline.execution import processes
interrupt.install()
processes.forget_others()
end = processes.run(sys.argv[2:], int(sys.argv[1]))
print(end, file=sys.stderr)
sys.exit(end is not None)
"""


def in_processes(*command, count=2, environment=None):
    """Start a script in the processes of a stage; the last line of stderr says how they ended."""
    return subprocess.Popen(
        [sys.executable, "-c", IN_PROCESSES, str(count), sys.executable, *map(str, command)],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **(environment or {})},
    )  # fmt: skip


@contextlib.contextmanager
def no_longer_than(seconds):
    """Fail if the block hangs; `seconds` is far more than the block takes on a busy machine."""

    def late(*_):
        raise AssertionError(f"the block has not ended after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
