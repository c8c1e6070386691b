"""Test that `train.recalibrate` is refused for a network without batch norms that can change."""

import json
from dataclasses import replace

import pytest

from pipeline.display.errors import UserError
from pipeline.planning import outline
from pipeline.planning.outline.__main__ import outline as built
from pipeline.planning.outline.__main__ import start
from tests.pipeline.planning.outline.test_outline import asked, torchvision
from tests.pipeline.planning.test_plan import config

RECALIBRATED = ("model=timm", "model.name=any", "data.image_size=32", "train.recalibrate=2")


@pytest.mark.parametrize(("name", "norms"), [("resnet18", True), ("convnext_tiny", False)])
def test_the_outline_says_whether_a_network_has_batch_norms(name, norms):
    assert built(asked(torchvision(name), 32)).norms == norms


@pytest.mark.parametrize(("globs", "norms"), [(["features.1"], True), (["features"], False)])
def test_batch_norms_that_are_frozen_do_not_count(tmp_path, globs, norms):
    settings = config(tmp_path, "method=plain", f"model.freeze=[{','.join(globs)}]")
    parts = {name: getattr(settings, name).model_dump(mode="json") for name in ("model", "method")}
    known = {"classes": 10, "channels": settings.data.channels, "counted": True, "head_lr": None}
    assert start(json.loads(json.dumps({**parts, **known})))["norms"] == norms


@pytest.mark.parametrize(
    ("method", "refused"),
    [("plain", True), ("grow", True), ("orepa", True), ("dbb", False), ("dyrep", False)],
)
def test_recalibration_that_changes_nothing_is_refused(tmp_path, monkeypatch, method, refused):
    found = outline.Outline(parameters=1, flops=1, growable=3, norms=False)
    monkeypatch.setattr(outline, "ask", lambda *_: vars(found))
    settings = config(tmp_path, *RECALIBRATED, f"method={method}")
    if not refused:  # the branches of this method have batch norms
        assert outline.of(settings) == found
        return
    with pytest.raises(UserError, match=r"recalibrate=2 changes nothing: any has no batch norm"):
        outline.of(settings)
    monkeypatch.setattr(outline, "ask", lambda *_: vars(replace(found, norms=True)))
    outline._cached_answer.cache_clear()
    assert outline.of(settings).norms
