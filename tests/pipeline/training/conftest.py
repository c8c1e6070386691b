"""Provide a training that runs in this process, without a stage, and can be stopped and resumed."""

import itertools
import json
from types import SimpleNamespace

import pytest

from pipeline.contract.stage import Context
from pipeline.contract.table import STAGES
from pipeline.planning import compose
from pipeline.records import attempt, rundir
from pipeline.training import device, loop
from tests.pipeline.training.learning import ALONE, TINY, Images
from tests.runs import composed


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Return a function that builds a training, which a stop request ends after step `until`.

    A second call with the same `where` resumes from the checkpoints of the first.
    """
    monkeypatch.setattr(loop, "Images", Images)
    monkeypatch.setattr(device, "configure", lambda *_: "")
    monkeypatch.setattr(attempt, "check_owner", lambda *_: None)
    monkeypatch.setattr(attempt, "last", lambda *_: SimpleNamespace(time=0.0))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / rundir.MANIFEST).touch()
    attempts = itertools.count(1)

    def make(*overrides, until=10**9, where="whole"):
        folder = tmp_path / where
        folder.mkdir(exist_ok=True)
        (folder / rundir.STAGE).touch()
        context = Context(
            stage=STAGES["train"], dir=folder, root=tmp_path, fingerprint="f",
            config=compose.validated(json.loads(composed(*TINY, *overrides))),
            parents={"prep": tmp_path}, attempt=next(attempts),
        )  # fmt: skip
        made = loop.Training(context, ALONE)
        context.stopping = lambda: made.state.step >= until
        return made

    return make
