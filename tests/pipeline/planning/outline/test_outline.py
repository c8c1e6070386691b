"""Test `planning.outline`: the cost of a network, what can grow, and whether it can be trained."""

import subprocess

import pytest
import torch

from dyrep.cost import cost
from pipeline.config.model import MobileNetV1, Vgg
from pipeline.display.errors import UserError
from pipeline.networks import architectures
from pipeline.planning import outline, summary
from pipeline.planning.outline import Outline, Request, Unknown, own
from pipeline.planning.outline.__main__ import outline as built
from tests.pipeline.planning.test_plan import config

ALL = ["kxk", "1x1", "identity"]


def vgg(*widths):
    return Vgg(name="v", family="vgg", widths=list(widths))


def mobilenet(width, small):
    return MobileNetV1(name="m", family="mobilenet_v1", width=width, small_stem=small)


def torchvision(name, small_stem=False):
    return {"name": name, "family": "torchvision", "small_stem": small_stem}


def asked(model, *sides, batch=4, branches=ALL, classes=10):
    return Request(model=model, sides=list(sides), batch=batch, branches=branches, classes=classes)


@pytest.mark.parametrize(
    ("model", "side"),
    [
        (vgg([32, 32], [64], [128, 128, 16]), 19),
        (vgg([8], [16]).model_copy(update={"hidden": 5, "bias": False}), 19),
        (mobilenet(1.0, True), 32),
        (mobilenet(0.3, False), 75),
    ],
)
@pytest.mark.parametrize("branches", [ALL, ["identity"]])
def test_arithmetic_gives_the_same_outline_as_building_the_network(model, side, branches):
    request = asked(model.model_dump(), side, branches=branches)
    assert own.outline(request) == built(request)
    with torch.device("meta"):
        spent = cost(architectures.build(model, request.classes), torch.zeros(1, 3, side, side))
    assert (own.outline(request).flops, own.outline(request).parameters) == (
        spent.flops,
        spent.parameters,
    )


@pytest.mark.parametrize(("small", "size", "flops"), [(True, 224, 54.4), (False, 224, 3.63)])
def test_the_stem_decides_what_resnet18_costs(small, size, flops):
    found = built(asked(torchvision("resnet18", small), size))
    assert found.flops / 1e9 == pytest.approx(flops, rel=0.01)
    assert found.growable == 17


@pytest.mark.long
def test_a_network_that_needs_values_while_it_is_built_has_an_outline():
    assert built(asked(torchvision("regnet_y_400mf", False), 64)).growable > 0


def dropping(family, name, **drops):
    stem = {"small_stem": False} if family == "torchvision" else {}
    return asked({"name": name, "family": family, **stem, **drops}, 64)


@pytest.mark.long
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (dropping("timm", "resnet10t", drop=0.2, drop_path=0.1), None),
        (dropping("torchvision", "efficientnet_b0", drop=0.1, drop_path=0.1), None),
        (dropping("torchvision", "densenet121", drop=0.1), None),  # its argument is drop_rate
        (
            dropping("torchvision", "resnet18", drop=0.1),
            "resnet18 of torchvision does not support model.drop;",
        ),
        (
            dropping("torchvision", "mobilenet_v2", drop=0.1, drop_path=0.1),
            "mobilenet_v2 of torchvision does not support model.drop_path",
        ),
        (
            dropping("timm", "vgg11", drop_path=0.1),
            "vgg11 of timm does not support model.drop_path",
        ),
        (
            dropping("timm", "repvgg_a0", drop_path=0.1),
            "model.drop_path changes nothing in repvgg_a0",
        ),
        (dropping("torchvision", "convnext_tiny", drop=0.1), "drop changes nothing in convnext_t"),
    ],
)
def test_dropout_that_a_network_does_not_support_is_refused(request_, message):
    if message is None:
        assert built(request_).parameters
        return
    with pytest.raises(UserError) as refused:
        built(request_)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (asked(torchvision("vgg16"), 16), "data.image_size=224 works"),
        (asked(torchvision("resnet18"), 32, batch=1), "two images per process"),
        (asked(torchvision("vit_b_16"), 32), "data.image_size=224 works"),
        (asked(torchvision("reznet18"), 32), "did you mean 'model.name=resnet18'"),
        (asked(torchvision("vgg11"), 64, 16), "images of 64 and 16 pixels"),
    ],
)
def test_a_network_that_cannot_be_trained_on_these_images_is_refused(request_, message):
    with pytest.raises(UserError) as refused:
        built(request_)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "sides", "batch", "message"),
    [
        (vgg([8], [8], [8]), (16, 4), 4, "images of 4 pixels vanish"),
        (mobilenet(1.0, False), (32,), 1, "two images per process"),
        (mobilenet(1e9, True), (32,), 4, "make it narrower"),
    ],
)
def test_arithmetic_refuses_a_network_that_cannot_be_trained(model, sides, batch, message):
    with pytest.raises(UserError, match=message):
        own.outline(asked(model.model_dump(), *sides, batch=batch))


def test_a_method_that_finds_nothing_to_grow_is_refused_with_the_reasons(tmp_path, monkeypatch):
    answer = {"parameters": 1, "flops": 1, "growable": 0, "left": {"a subclass of Conv2d": 12}}
    monkeypatch.setattr(outline, "ask", lambda *_: answer)
    model = ("model=timm", "model.name=any", "data.image_size=40")
    for method in ("dyrep", "dbb"):
        with pytest.raises(UserError, match=r"a subclass of Conv2d \(12\); use method=plain"):
            outline.of(config(tmp_path, *model, f"method={method}"))
    assert outline.of(config(tmp_path, *model, "method=plain")) == Outline(**answer)


def test_widening_is_refused_where_nothing_is_depthwise(tmp_path, monkeypatch):
    asked = ("method=dbb", "method.widen_depthwise=2")
    with pytest.raises(
        UserError, match="widen_depthwise=2 changes nothing: vgg_small has no depth"
    ):
        outline.of(config(tmp_path, *asked))
    found = outline.of(config(tmp_path, *asked, "model=mobilenet_v1"))
    assert isinstance(found, Outline) and found.depthwise == 13


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("train.profile=260", 2, "train.profile=260 would write nothing: 5 steps come before, and"),
        ("train.profile=259", 0, "dry run"),
        ("train.profile=1 train.batch_size=1437 train.epochs=2", 2, "has 2; leave it out"),
        ("train.recalibrate=1000000000", 0, "takes all 22 batches of an epoch"),
        ("train.recalibrate=22", 0, "dry run"),
        ("train.ema=0.999", 0, "leaves 77 % of the first weights in the averaged network"),
        ("train.ema=0.999", 0, "264 steps; use at most 0.982, or train.ema_warmup=true"),
        ("train.ema=0.982", 0, "dry run"),
    ],
)
def test_settings_that_go_beyond_the_training_are_noted_or_refused(inside, words, code, message):
    found, out, err = inside(*words.split(), "dry_run=true")
    assert found == code
    assert message in " ".join((out + err).split())
    assert ("note: train.recalibrate" in out) == ("000" in words)
    assert ("note: train.ema" in out) == ("999" in words)


@pytest.mark.parametrize("harm", ["absent", "slow", "broken"])
def test_a_network_that_cannot_be_checked_is_noted_in_the_plan(inside, monkeypatch, harm):
    def run(*_, **__):
        if harm == "slow":
            raise subprocess.TimeoutExpired("python", 1)
        return subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no timm\n")

    outline._cached_answer.cache_clear()
    monkeypatch.setattr(outline.subprocess, "run", run)
    if harm == "absent":
        monkeypatch.setattr(outline, "find_spec", lambda _: None)
    code, out, _ = inside(
        "model=timm", "model.name=resnet10t", "data.image_size=48", "dry_run=true"
    )
    assert code == 0
    assert "it was not checked: " in out
    outline._cached_answer.cache_clear()


@pytest.mark.parametrize(
    ("words", "counted", "expected"),
    [
        (
            ["data=synthetic", "data.classes=1000", "data.val_fraction=0.5"],
            None,
            "for 1,000 classes, ",
        ),
        (
            ["data=imagefolder", "data.root=/x"],
            None,
            "for 1,000 classes (assumed until prep has counted them), ",
        ),
        (["data=imagefolder", "data.root=/x"], 37, "for 37 classes, "),
        ([], None, "for 10 classes, "),
    ],
)
@pytest.mark.parametrize(
    ("method", "branches"),
    [
        ("plain", ""),
        ("dyrep", ", 6 convolutions can grow"),
        ("dbb", ", 6 convolutions get branches"),
    ],
)
def test_the_plan_shows_classes_and_branches(tmp_path, words, counted, expected, method, branches):
    settings = config(tmp_path, "data.image_size=64", "model=vgg_small", f"method={method}", *words)
    network = outline.of(settings, counted)
    line, _ = summary._training(settings, network, counted)
    assert expected.removesuffix(", ") + branches == line[line.index("for", line.index("M par")) :]


def test_the_plan_shows_network_and_recipe(inside):
    code, out, _ = inside(
        "dry_run=true", "method=dyrep", "train.epochs=120", "method.start=identity"
    )
    assert code == 0
    assert "GFLOPs for 16 pixels" in out
    assert "6 convolutions can grow, kernels start with the identity in them" in out
    assert "grows 20 times, every 5 epochs up to epoch 100" in out
    assert "may grow 2 times, every 3 epochs up to epoch 6" in inside("dry_run=true")[1]
    repeated = inside("dry_run=true", "train.augment.repeats=3")[1]
    assert (
        "12 epochs of batch 64, 3 versions of each image, 1 in 3 images per epoch; may" in repeated
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method=dyrep", "method.branches=[kxk,identity]"], "3 convolutions, it can take none of"),
        (["method=dbb", "method.branches=[kxk,identity]"], None),
        (["method=plain"], None),
        (["method=dyrep"], None),
    ],
)
def test_the_plan_shows_how_many_convolutions_are_left_alone(tmp_path, words, expected):
    settings = config(tmp_path, "model=vgg_small", *words)
    lines = list(summary._training(settings, outline.of(settings), None))
    (alone,) = [line for line in lines if line.startswith("left alone: ")] or [None]
    assert (expected in alone) if expected else alone is None


def test_a_dry_run_shows_the_plan_of_a_data_set_that_is_missing(inside, tmp_path):
    code, out, err = inside("data=cifar10", f"data.root={tmp_path}/nowhere", "dry_run=true")
    assert code == 2
    assert "6 convolutions can grow" in out
    assert "latency  run" in out
    assert err.startswith(f"error: {tmp_path}/nowhere is not a folder")


@pytest.mark.parametrize(
    ("overrides", "notes"),
    [
        (["data=synthetic"], ["train=imagenet", "model=resnet18"]),
        (["data=synthetic", "train=digits", "model=vgg_small"], []),
        (["data=synthetic", "data.image_size=32"], ["train=cifar"]),
        ([], []),
    ],
)
def test_a_default_that_does_not_suit_the_images_is_noted(inside, overrides, notes):
    out = inside(*overrides, "train.batch_size=32", "dry_run=true")[1]
    assert out.count("note: ") == len(notes)
    assert all(note in out for note in notes)


def test_an_unknown_is_not_an_outline():
    assert not isinstance(Unknown(why="x"), Outline)


def test_an_optimizer_that_needs_a_gpu_is_left_to_the_job_on_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(outline, "ask", lambda *_: {"refused": "it cannot", "needs_gpu": True})
    settings = ("train.optimizer=bnbadamw8bit", "train.lr=0.001")
    with pytest.raises(UserError, match="it cannot"):
        outline.try_optimizer(config(tmp_path, *settings))
    untried = outline.try_optimizer(config(tmp_path, *settings, "cluster=slurm"))
    assert "the job tries it" in untried.why
