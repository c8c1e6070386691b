"""Test `config.rules`: unset values follow from data and recipe, and given values stay."""

import pytest

from pipeline.config import rules
from tests.pipeline.planning.test_plan import config, fingerprints

FLOWERS = ("data=imagefolder", "data.root=/x")


@pytest.mark.parametrize(
    ("overrides", "stem"),
    [
        (("model=resnet18",), True),
        (("model=resnet18", *FLOWERS), False),
        (("model=resnet50", "data=cifar10", "data.root=/x"), True),
        (("model=resnet34", "data.image_size=64"), True),
        (("model=resnet34", "data.image_size=65"), False),
        (("model=mobilenet_v1", "data=synthetic"), False),
        (("model=mobilenet_v1",), True),
        (("model=torchvision", "model.name=wide_resnet50_2"), True),
        (("model=torchvision", "model.name=wide_resnet50_2", *FLOWERS), False),
        (("model=torchvision", "model.name=mobilenet_v2"), False),
        (("model=resnet18", *FLOWERS, "model.small_stem=true"), True),
        (("model=resnet18", "model.small_stem=false"), False),
    ],
)
def test_the_stem_follows_the_images(tmp_path, overrides, stem):
    assert config(tmp_path, *overrides).model.small_stem is stem


@pytest.mark.parametrize(
    ("overrides", "resize"),
    [
        (FLOWERS, 256),
        ((*FLOWERS, "data.image_size=32"), 37),
        ((*FLOWERS, "data.image_size=288"), 329),
        ((*FLOWERS, "data.image_size=32", "data.resize=256"), 256),
        ((*FLOWERS, "data.image_size=32", "data.resize=null"), None),
        ((), None),
    ],
)
def test_the_resize_follows_the_image_size(tmp_path, overrides, resize):
    assert config(tmp_path, *overrides).data.resize == resize


@pytest.mark.parametrize(
    ("overrides", "window"),
    [
        ((), (3, 9)),
        (("train=imagenet",), (5, 100)),
        (
            ("train=cifar", "data=cifar10", "data.root=/x"),
            (15, 495),
        ),  # 500 was published; both give 33 adjustments
        (("train=imagenet", "train.epochs=90"), (5, 75)),
        (("train.epochs=4",), (1, 3)),
        (("train.epochs=1",), (1, 1)),
        (
            (
                "train=cifar",
                "data.loader=auto",
                "train.augment.cutout=8",
                "method.last_adjust_epoch=500",
            ),
            (15, 500),
        ),
        (("train=imagenet", "method.last_adjust_epoch=3"), (3, 3)),
        (("train.epochs=4", "method.adjust_interval=2"), (2, 2)),
        (("train.epochs=10", "method.adjust_interval=9"), (9, 9)),
        (("method.adjust_interval=2", "method.last_adjust_epoch=4"), (2, 4)),
    ],
)
def test_growth_follows_the_epochs(tmp_path, overrides, window):
    method = config(tmp_path, "method=dyrep", *overrides).method
    assert (method.adjust_interval, method.last_adjust_epoch) == window


@pytest.mark.parametrize(
    ("overrides", "epochs", "window"),
    [
        (("train.budget.plain_epochs=8",), 8, (2, 6)),
        (("train.budget.plain_epochs=11.5",), 12, (3, 9)),
        (("train.budget.plain_epochs=1",), 1, (1, 1)),
        (("train.budget=null",), 12, (3, 9)),
    ],
)
def test_epochs_and_growth_follow_a_budget(tmp_path, overrides, epochs, window):
    asked = config(tmp_path, "method=dyrep", *overrides)
    assert asked.train.epochs == epochs
    assert (asked.method.adjust_interval, asked.method.last_adjust_epoch) == window
    assert rules.settle(rules.unsettle(asked.model_dump())) == asked.model_dump()


def test_giving_the_derived_values_does_not_change_the_fingerprint(tmp_path):
    derived = ("method.adjust_interval=3", "method.last_adjust_epoch=6")
    assert fingerprints(tmp_path, *derived) == fingerprints(tmp_path)


def test_derived_values_can_be_removed_and_derived_again(tmp_path):
    values = config(tmp_path, "model=resnet18", "method.adjust_interval=4").model_dump()
    again = rules.unsettle(values)
    assert again["model"]["small_stem"] == "auto"
    assert again["method"]["adjust_interval"] == 4  # given, not derived by a rule
    assert rules.settle(again) == values


@pytest.mark.parametrize(
    ("overrides", "settled"),
    [
        ((), (3, 6, "seconds")),
        (("train.deterministic=true",), (3, 6, "flops")),
        (("method.cost=seconds", "train.deterministic=true"), (3, 6, "seconds")),
        (("train=imagenet",), (5, 60, "seconds")),
        (("method.last_adjust_epoch=9",), (3, 9, "seconds")),
    ],
)
def test_method_grow_adjusts_early_and_a_deterministic_training_prices_in_flops(
    tmp_path, overrides, settled
):
    method = config(tmp_path, "method=grow", *overrides).method
    assert (method.adjust_interval, method.last_adjust_epoch, method.cost) == settled
