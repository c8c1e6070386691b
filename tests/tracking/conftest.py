"""A recording server and runs to send there."""

import subprocess
import sys

import pytest

from tests.launcher import PROJECT
from tests.runs import make_run
from tests.tracking.recorder import Recorder


@pytest.fixture
def recorder():
    with Recorder() as made:
        yield made


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, "one")


@pytest.fixture
def python(recorder):
    """Return a way to run a module of the pipeline as a client of the server."""

    def call(module, *arguments, timeout=120, **environment):
        return subprocess.run(
            [sys.executable, "-m", f"pipeline.{module}", *map(str, arguments)],
            cwd=PROJECT, env=recorder.environment(**environment), capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip

    return call
