"""Provide a stand-in for W&B's server, and runs to send to it."""

import pytest

from tests.launcher import module
from tests.pipeline.tracking.recorder import Recorder
from tests.runs import make_run


@pytest.fixture
def recorder():
    with Recorder() as made:
        yield made


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, "one")


@pytest.fixture
def python(recorder):
    """Return a function that runs a module of the pipeline as a client of the server."""

    def call(name, *arguments, timeout=120, **environment):
        changed = recorder.environment(**environment)
        return module(name, *arguments, environment=changed, timeout=timeout)

    return call
