"""Run attempts at a stage in processes forked from this one, which has imported everything.

Imports take most of the time of a short training. Everything else is as with `python -m
pipeline.run DIR`: one process for the stage and, below it, one for each rank; signals can end them
at any moment.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nvidia.dali.fn  # noqa: F401
import timm.optim  # noqa: F401
import timm.scheduler  # noqa: F401

import pipeline.stages.prep  # noqa: F401
import pipeline.stages.train  # noqa: F401
from benchmarks.killing import Attempt, children
from pipeline import run, worker
from pipeline.contract import interrupt
from pipeline.execution import processes


class Child:
    """A forked process, used like a `subprocess.Popen`."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            interrupt._parent = os.getppid()
            code = 1
            try:
                code = work()
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.01)
        return code


class Forked(Attempt):
    """An attempt by forked processes."""

    def _start(self, log: int) -> Child:
        def work() -> int:
            os.setsid()
            os.dup2(log, 1)
            os.dup2(log, 2)
            processes.subprocess = Workers  # type: ignore[assignment]
            return run.main([str(self.stage)])

        return Child(work)

    def _ranks(self) -> dict[int, int]:
        return {pid: rank for rank, pid in enumerate(sorted(children(self.process.pid)))}


class Workers:
    """The part of the module `subprocess` that `pipeline.execution.processes` uses."""

    TimeoutExpired = subprocess.TimeoutExpired

    @staticmethod
    def Popen(command: list[str], env: dict[str, str], pass_fds: list[int]) -> Child:
        def work() -> int:
            _close_all_but(pass_fds)
            os.environ.update(env)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
                signal.signal(number, signal.SIG_DFL)
            return worker.main(Path(command[-1]))

        return Child(work)


def _close_all_but(kept: list[int]) -> None:
    """Close the files that a started program would not inherit, such as the lock of the stage."""
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):
            if number not in kept and not os.get_inheritable(number):
                os.close(number)
