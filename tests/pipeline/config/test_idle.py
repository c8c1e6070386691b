"""Test `config.idle`: a setting that has no effect beside the others is refused if it is given."""

import pytest

from pipeline.config import flatten
from pipeline.config.idle import idle
from tests.pipeline.planning.test_plan import config

REFUSED = [
    (
        "method=dbb method.widen_depthwise=2 method.branches=[1x1]",
        "has no 1x1_kxk, which it widens",
    ),
    ("method=grow method.cut_std=0.1", "method.cut_std=0.1 does nothing: it is the rule"),
    (
        "method=dyrep method.form=linear method.cut_std=0.1",
        "linear ones are cut by method.cut_ratio",
    ),
    ("method=grow method.calibration_batches=3", "linear branches have none; leave it out"),
    ("train.augment.padding=2", "does nothing: it goes with train.augment.crop=pad"),
    ("train.augment.scale=[0.1,1.0]", "train.augment.scale=[0.1,1.0] does nothing"),
    ("fuse.exports=[pt2] fuse.opset=20", "fuse.exports writes no ONNX"),
]
TAKEN = (
    "method=dyrep method.cut_std=0.1",
    "method=grow method.cut_ratio=0.1",
    "method=dbb method.widen_depthwise=2",
    "train.augment.crop=pad train.augment.padding=2",
    "train.augment.crop=resized train.augment.scale=[0.1,1.0]",
    "fuse.opset=20",
)


def refused(tmp_path, asked):
    named = {word.partition("=")[0] for word in asked.split()}
    return idle(named, flatten(config(tmp_path, *asked.split()).model_dump()))


@pytest.mark.parametrize(("asked", "message"), REFUSED)
def test_a_setting_without_effect_is_refused(tmp_path, asked, message):
    (refusal,) = refused(tmp_path, asked).values()
    assert message in refusal


@pytest.mark.parametrize("asked", TAKEN)
def test_a_setting_with_an_effect_is_accepted(tmp_path, asked):
    assert not refused(tmp_path, asked)


def test_a_launch_refuses_a_setting_without_effect(inside):
    code, _, err = inside("method=grow", "method.cut_std=0.1", "dry_run=true")
    assert (code, "method.cut_std=0.1 does nothing" in err) == (2, True)


@pytest.mark.parametrize(("methods", "code"), [("dyrep,grow", 0), ("grow,orepa", 2)])
def test_a_sweep_refuses_a_setting_that_none_of_its_runs_uses(inside, methods, code):
    words = "-m", f"method={methods}", "method.cut_std=0.1", "dry_run=true", "stage=prep"
    assert inside(*words)[0] == code
