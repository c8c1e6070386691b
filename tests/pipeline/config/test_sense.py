"""Test `config.sense`: a value that fits the schema but makes no sense is refused in one line."""

import re

import pytest

from pipeline.config import flatten, sense
from pipeline.display.errors import UserError
from pipeline.planning import compose
from tests.launcher import PROJECT
from tests.pipeline.planning.test_plan import config

REFUSED = [
    ("train.lr=inf", "train.lr=inf is not a finite number"),
    ("train.lr=nan", "train.lr=nan"),
    ("method.max_cost=inf", "not a finite number"),
    ("fuse.tolerance=inf", "not a finite number"),
    ("fuse.tolerance=1e-30", "fuse.tolerance=1e-30 is finer than float64; use e.g. 1e-9"),
    ("fuse.tolerance=1.0", "fuse.tolerance=1 accepts any network"),
    ("train.augment.crop=resized train.augment.scale=[1.0,0.08]", "write [0.08,1.0]"),
    ("train.augment.crop=resized train.augment.ratio=[2.0,0.5]", "write [0.5,2.0]"),
    ("train.augment.jitter=[0.0,0.0,0.0,0.7]", "use at most 0.5"),
    ("train.augment.jitter=[0.4,1000.0,0.4,0.0]", "use at most 10"),
    ("train.augment.rotate=181.0", "use at most 180"),
    ("train.augment.cutout=16", "covers whole images"),
    ("train.augment.crop=pad train.augment.padding=16", "takes all of images"),
    ("train.augment.progressive=17", "above data.image_size=16"),
    ("method.branches=[1x1,1x1]", "names 1x1 twice"),
    ("method.branches=[kxk]", "adds nothing"),
    ("model.widths=[[32],[]]", "a stage without convolutions"),
    ("train.decay_rate=0.5", "a setting of train.schedule=step or exponential or plateau, not of"),
    ("train.decay_epochs=5", "train.decay_epochs=5 is a setting of train.schedule=step or expo"),
    ("train.schedule=step train.decay_epochs=2 train.cycle_growth=2", "=restarts, not of step"),
    ("train.schedule=step train.decay_epochs=[]", "decay_epochs: [] is not a number of epochs"),
    (
        "train.schedule=step train.decay_epochs=[3,0]",
        "decay_epochs: [3, 0] is not a number of epoc",
    ),
    ("train.schedule=step train.decay_epochs=0.5", "0.5 is not a number of epochs"),
    ("train.schedule=step train.decay_epochs=[3,3]", "names an epoch twice"),
    ("train.schedule=step train.decay_epochs=12", "never comes with train.epochs=12"),
    (
        "train.schedule=step train.decay_epochs=[6,12]",
        "12 of train.decay_epochs=[6,12] never comes with train.epochs=12",
    ),
    ("train.schedule=restarts train.cycle_epochs=12 train.warmup_epochs=0", "never comes with"),
    ("train.schedule=wsd train.decay_epochs=12", "has after its warm-up; use at most 11"),
    ("train.schedule=rsqrt train.warmup_epochs=0", "give train.warmup_epochs, e.g. 5"),
    ("train.schedule=rsqrt train.decay_epochs=[2,3]", "rsqrt takes one number"),
    ("train.schedule=tanh train.decay_epochs=2", "a setting of train.schedule=step or"),
    ("train.schedule=wsd train.decay_epochs=2 train.decay_rate=0.5", "not of wsd"),
    ("train.augment.cutout_clip=true", "give train.augment.cutout"),
    ("data.loader=memory train.augment.policy=rand-m9-mstd0.5", "use data.loader=auto"),
    ("data.loader=dali train.augment.cutout=4", "dali does not do train.augment.cutout=4"),
    ("train.augment.policy=rand-m9-x3", "rand-m9-x3 is not a policy; use randaugment, autoaugment"),
    ("train.augment.policy=autoaugmant", "is not a policy"),
    (
        "train.decay_epochs=[5,50]",
        "train.decay_epochs=[5,50] is a setting of train.schedule=step or",
    ),
    ("train.schedule=plateau train.decay_epochs=[5,6]", "train.schedule=plateau takes one number"),
    (
        "data.loader=torch train.augment.policy=rand-n16-tweights",
        "n16 is too large; use at most n15",
    ),
    ("data.loader=torch train.augment.policy=rand-n15-t3aw", "n15 is too large; use at most n14"),
    ("data.loader=torch train.augment.policy=augmix-d99999", "d99999 is too large"),
    ("data.loader=torch train.augment.policy=augmix-w1000", "w1000 is too large"),
    (
        "data.loader=torch train.augment.policy=rand-m9999",
        "m9999 is too large; use at most m10, or",
    ),
    ("data.loader=torch train.augment.policy=rand-m31-mmax30", "m31 is too large; use at most m30"),
    ("data.loader=torch train.augment.policy=rand-mmax99", "mmax99 is too large"),
    ("data.loader=torch train.augment.policy=rand-p1.5", "p1.5 is too large"),
    ("data.loader=torch train.augment.policy=rand-p0", "p0 leaves images as they are"),
    ("data.loader=torch train.augment.policy=rand-m9-m5", "says m twice"),
    ("data.loader=torch train.augment.policy=rand-tweights-t3a", "says t twice"),
    ("train.recalibrate=20 train.recalibrate_until=13", "beyond the end, train.epochs=12"),
    ("train.layer_decay=1e-30", "so small that nothing is learned; use at least 0.1"),
    ("train.schedule=step train.decay_epochs=4 train.decay_rate=1e-300", "use at least 1e-06"),
    ("train.schedule=polynomial train.decay_power=1e9", "too large; use at most 100"),
    ("train.label_smoothing=0.999999", "too large; use at most 0.99"),
    ("train.augment.crop=resized train.augment.scale=[1e-9,1e-9]", "use at least 0.001"),
    ("train.augment.crop=resized train.augment.ratio=[1e-9,1e-9]", "use at least 0.01"),
    ("train.lr=1e-300", "so small that nothing is learned"),
    ("train.lr=1e300", "too large"),
    ("train.clip_grad=1e-20", "so small that nothing is learned"),
    ("train.decay_norms=true train.weight_decay=0.0", "give that, or leave it out"),
    ("method=dbb method.widen_depthwise=17", "too large; use at most 16"),
    ("tracking.project=a/b", "tracking.project=a/b has a / in it, which W&B refuses"),
    ("tracking.entity=a:b", "tracking.entity=a:b has a : in it"),
    ("tracking.also=[csv,csv]", "tracking.also names csv twice"),
    ("tracking.also=null", "tracking.also=null is not a list; leave it out, or give a list"),
    ("train.optimizer=", "train.optimizer= is empty; give train.optimizer=VALUE"),
    ("train.batch_size=0.5", "train.batch_size=0.5 must be a whole number"),
    ("train.batch_size=1e3", "must be a whole number; write 1000"),
    ("train.augment.flip=1", "train.augment.flip=1 must be true or false"),
    ("method=dbb method.branches=[dw_1x1]", "method.branches: dw_1x1 are branches of linear"),
    ("train.patience=12", "train.patience=12 never ends a training of train.epochs=12"),
    ("train.ema_warmup=true", "give train.ema"),
    ("latency.batch_sizes=[1,8,1]", "names 1 twice"),
    ("latency.also=[onnx,onnx]", "names onnx twice"),
    ("fuse.exports=[pt2,pt2]", "names pt2 twice"),
    ("eval.shifts=[blur,blur]", "names blur twice"),
    ("stage.run=[prep,prep]", "names prep twice"),
    ("method.adjust_interval=12", "use method.adjust_interval=11, or method=plain"),
    ("method.adjust_interval=5 method.last_adjust_epoch=4", "with method.last_adjust_epoch=4"),
    ("method.last_adjust_epoch=0", "a later method.last_adjust_epoch"),
    ("method.adjust_interval=3 train.epochs=2", "with train.epochs=2"),
    ("train.schedule=step train.decay_epochs=12", "never comes with train.epochs=12"),
    ("data=synthetic data.height=100000 data.width=100000", "more than 100 million pixels"),
    ("data=synthetic data.height=1 data.width=51", "thinner than 1:50"),
    ("train.epochs=1 train.warmup_epochs=5", "more than train.epochs=1"),
    ("train.epochs=9999999999999999", "train.epochs=9999999999999999 is too large"),
    ("model.widths=[[99999999999]]", "too large"),
    ("data.image_size=100000", "data.image_size=100000 is too large; use at most 16384"),
    ("latency.threads=100000", "latency.threads=100000 is too large"),
    ("train.augment.repeats=1000000", "train.augment.repeats=1000000 is too large"),
    (
        "train.augment.repeats=64",
        "fills a whole batch (train.batch_size=64) with versions of one image",
    ),
    ("seed=9223372036854775808", "use at most 9223372036854775807"),
    ("data.split_seed=4294967296", "use at most 4294967295"),
    ("fuse.licence='a\tb'", "control character"),
    ("fuse.licence=", "fuse.licence= is empty"),
    ("fuse.opset=99", "use 18 to 23"),
    ("prep.shrink=8", "use 16 or more"),
    ("data.val_fraction=0.001", "use 0.01 or more"),
    ("data.val_fraction=0.9999", "to train on; use 0.99 or less"),
    ("data.val_fraction=0.9945", "to train on; use 0.99 or less"),
    ("data=synthetic data.images=5", "use 20 or more"),
    ("name=ghp_abcdefghijklmnop1234567890", "name=*** looks like a secret"),
    ("group=hf_abcdefghijklmnop1234567890", "group=*** looks like a secret"),
    ("data.root=/my/pictures", "data=imagefolder"),
    ("data=synthetic data.root=/pictures", "not read by data=synthetic"),
    ("data=synthetic data.classes=1", "use 2 or more"),
    ("data=synthetic data.classes=300", "each of the 300 classes"),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED)
def test_a_value_that_makes_no_sense_is_refused_in_one_line(tmp_path, asked, message):
    overrides = [asked] if "\t" in asked else asked.split()
    with pytest.raises(UserError) as refused:
        config(tmp_path, *overrides)
    assert message in str(refused.value)
    assert "method: method" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("asked", ["train.epochs=1", "train.epochs=2", "seed=9223372036854775807",
                                   "train.augment.progressive=16", "train.augment.repeats=3", "train.batch_size=1", "train.recalibrate=20 train.recalibrate_until=12",
 "data.loader=torch train.augment.policy=rand-n14-t3aw-m30-mmax30-p1", "method=dyrep method.cut_std=0.1", "train.augment.crop=pad train.augment.padding=2", "method.adjust_interval=11",
                                   "train.schedule=step train.decay_epochs=11", "data=synthetic data.height=1 data.width=50",
                                   "data.val_fraction=0.99", "data=synthetic data.images=20 data.val_fraction=0.5"])  # fmt: skip
def test_a_value_at_the_limit_is_accepted(tmp_path, asked):
    config(tmp_path, *asked.split())


def test_every_recipe_makes_sense(tmp_path):
    for recipe in ("digits", "cifar", "imagenet"):
        config(tmp_path, f"train={recipe}", "data=synthetic")


def test_frozen_settings_stay_readable_after_a_new_check(tmp_path):
    """A run that is older than a check can continue, because only the schema judges frozen settings."""
    values = config(tmp_path).model_dump(mode="json")
    values["method"]["adjust_interval"] = 99
    old = compose.validated(values)
    assert sense.wrong(flatten(old.model_dump()))


def test_the_documented_equivalents_of_timms_options_are_accepted(tmp_path):
    page = (PROJECT / "docs" / "stages.md").read_text()
    table = page.partition("## What timm's train.py calls it")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| `--.*\| `([^`]*)` \|$", table)
    assert len(rows) > 14
    for row in rows:
        config(tmp_path, *row.split())
