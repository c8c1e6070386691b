"""Test `loaders.choose`: which loader is used for a split, and the reason that is reported."""

from dataclasses import replace

import pytest

from pipeline.data.loaders import choose as choosing
from pipeline.data.loaders.choose import choose, make
from pipeline.display.errors import UserError
from tests.pipeline.data.loaders.loading import KINDS, augment, spec

pytestmark = pytest.mark.long


def test_auto_chooses_a_suitable_loader_and_gives_the_reason(data, odd, monkeypatch):
    def chosen(own):
        kind, why = choose("auto", own)
        return kind.kind, why

    assert chosen(spec(data))[0] == "memory"
    kind, why = chosen(spec(odd[0], "val"))
    assert kind == "dali" and "memory needs images of one size" in why
    kind, why = chosen(spec(data, augment=augment(policy="randaugment")))
    assert kind == "torch" and "dali has no policy=randaugment" in why
    monkeypatch.setattr(choosing, "IN_MEMORY", 1000)
    assert "memory would need" in chosen(spec(data))[1]
    monkeypatch.setattr(choosing, "find_spec", lambda name: None)
    assert chosen(spec(data))[0] == "torch"
    with pytest.raises(UserError, match=r"data.loader=dali is not installed"):
        choose("dali", spec(data))


def test_an_unsupported_augmentation_is_refused_with_a_loader_that_supports_it(data):
    with pytest.raises(UserError, match=r"data.loader=dali has no policy=autoaugment; .*=torch"):
        make("dali", spec(data, augment=augment(policy="autoaugment")))
    with pytest.raises(UserError, match=r"memory has no policy=randaugment; use data.loader=torch"):
        make("memory", spec(data, augment=augment(policy="randaugment")))


def test_auto_resumes_with_the_loader_that_saved_the_position(data):
    own = spec(data, augment=augment(crop="resized"))
    assert make("auto", own).kind == "memory"
    for kind in KINDS:
        assert make("auto", own, make(kind, own).state()).kind == kind
    with pytest.raises(UserError, match="position to go on from is not one of these"):
        make("auto", own, make("torch", replace(own, batch_size=4)).state())
