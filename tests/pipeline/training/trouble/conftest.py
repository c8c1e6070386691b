"""Provide a finished training, and a fresh stage directory with the same fingerprint."""

import pytest

from benchmarks.chaos import copy_question
from pipeline.records import attempt


@pytest.fixture
def stage(finished, tmp_path):
    """Return a fresh stage directory of the training that the fixture `finished` has run."""
    done = (finished.root / "runs" / "small" / "train").resolve()
    return copy_question(done, tmp_path / "outputs")


@pytest.fixture(autouse=True)
def no_attempt(monkeypatch):
    """Restore the environment variable of the attempt number, which a test sets in this process."""
    monkeypatch.setenv(attempt.NUMBER, "1")


@pytest.fixture
def undisturbed(finished):
    return (finished.root / "runs" / "small" / "train").resolve()
