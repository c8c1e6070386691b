"""A finished training, and a fresh directory of the same question."""

import pytest

from benchmarks.chaos import copy_question
from pipeline.records import attempt


@pytest.fixture
def stage(finished, tmp_path):
    """Return a fresh directory of the training that `finished` has done."""
    done = (finished.root / "runs" / "small" / "train").resolve()
    return copy_question(done, tmp_path / "outputs")


@pytest.fixture(autouse=True)
def no_attempt(monkeypatch):
    """Take back what a test claims in this process."""
    monkeypatch.setenv(attempt.NUMBER, "1")


@pytest.fixture
def undisturbed(finished):
    return (finished.root / "runs" / "small" / "train").resolve()
