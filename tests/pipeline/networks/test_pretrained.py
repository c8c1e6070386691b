"""Test `networks.pretrained` and `networks.weights`: files are read safely, and must fit the network."""

import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dyrep
from pipeline.config.model import Timm
from pipeline.display.errors import UserError
from pipeline.networks import architectures, optimizers, pretrained, weights
from pipeline.records import disk
from tests.pipeline.networks.made import model, network, stored
from tests.runs import make_run


def begun(path, classes=3, counted=True, **settings):
    """Return a new network that starts from the weights of a file, and the reported lines."""
    fresh = network(classes, seed=1)
    asked = model().model_copy(update={"pretrained": str(path), **settings})
    return fresh, pretrained.begin(fresh, asked, classes, counted=counted)


# -- reading files ---------------------------------------------------------------------------------


class Code:
    def __reduce__(self):
        return os.mkdir, ("/tmp/should-never-be-made",)


def whole(folder):
    torch.save(network(), folder / "x.pth")


def cut_off(name):
    def make(folder):
        state = {"w": torch.ones(5000)}
        save_file(state, folder / name) if "safe" in name else torch.save(state, folder / name)
        os.truncate(folder / name, 5000)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: torch.save(Code(), f / "x.pth"), "may be code (posix.mkdir); save"),
        (lambda f: torch.save({"w": torch.ones(2), "args": SimpleNamespace()}, f / "x.pt"), "(types.SimpleNamespace)"),
        (lambda f: torch.save({"args": Namespace(x=Code())}, f / "x.pt"), "may be code (posix.mkdir)"),
        (whole, "save model.state_dict() alone"),
        (cut_off("x.pth"), "or was cut off ("),
        (cut_off("x.safetensors"), "was cut off (SafetensorError"),
        (lambda f: (f / "x.pth").write_bytes(b"\x80\x02half"), "give a"),
        (lambda f: (f / "x.pth").write_bytes(b"GIF89a and so on"), "is not a file of weights"),
        (lambda f: torch.save([torch.ones(2)], f / "x.pth"), "holds a list and no weights by name"),
        (lambda f: torch.save({"epoch": 3}, f / "x.pth"), "no weights by name, but epoch"),
        (lambda f: torch.save({}, f / "x.pth"), "holds no weights by name; give a state_dict"),
        (lambda f: save_file({}, f / "x.safetensors"), "holds no weights; give another file"),
        (lambda f: torch.save({"w": torch.tensor([1.0, torch.nan])}, f / "x.pth"), "not finite"),
        (lambda f: save_file({"w": torch.ones(2)}, f / "x.safetensors", {"state": "{}"}), "a checkpoint"),
    ],
)  # fmt: skip
def test_a_file_without_weights_is_refused_in_one_line(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError) as refused:
        weights.read(next(tmp_path.iterdir()), None)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert not Path("/tmp/should-never-be-made").exists()


def test_an_empty_file_of_weights_ends_the_search_for_prefixes():
    """All names of an empty mapping have any prefix; the search for prefixes must end nevertheless."""
    assert weights.named_as({}, {"a": 1}) == {}


def test_a_file_that_changed_since_the_run_was_frozen_is_refused(tmp_path):
    path = stored(tmp_path, {"w": torch.ones(2)})
    assert weights.read(path, disk.sha256(path))["w"].tolist() == [1, 1]
    with pytest.raises(UserError, match="has changed since the run was frozen; restore"):
        weights.read(path, "0" * 64)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"w": torch.ones(1)}},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {"state_dict": {"w": torch.ones(1)}, "state_dict_ema": state},
        lambda state: {"state_dict": state, "args": Namespace(opt="sgd", lr=0.1, betas=[0.9])},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_in_checkpoints_of_other_programs(tmp_path, wrapped, zipped):
    source = network()
    torch.save(
        wrapped(source.state_dict()), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped
    )
    made, _ = begun(tmp_path / "x.pth")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(made.eval()(images), source(images))


# -- fitting weights to a network ------------------------------------------------------------------


def test_a_rate_for_a_frozen_or_missing_head_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    optimizers.check_head(network, {"2.weight", "2.bias"})
    network[2].requires_grad_(False)
    with pytest.raises(
        UserError, match=r"model\.target take num_classes, or leave train\.head_lr out"
    ):
        optimizers.check_head(network, set())
    with pytest.raises(UserError, match=r"keeps that as it is; leave train\.head_lr out"):
        optimizers.check_head(network, {"2.weight", "2.bias"})


def test_a_head_of_the_same_number_of_classes_is_used(tmp_path):
    _, lines = begun(stored(tmp_path, network().state_dict()))
    assert lines == [
        f"start: weights of {tmp_path}/weights.safetensors, with their class head, of 3 classes"
    ]


def test_a_head_of_another_number_of_classes_is_replaced_and_reported(tmp_path):
    source = network(classes=7)
    made, (lines,) = begun(stored(tmp_path, source.state_dict()))
    assert lines.endswith(
        "but the class head (classifier.weight, classifier.bias) is new: 7 classes there, 3 here"
    )
    assert torch.equal(made.features[0].weight, source.features[0].weight)
    assert torch.equal(made.classifier.weight, network(seed=1).classifier.weight)
    wrapped = {f"module.{name}": value for name, value in source.state_dict().items()}
    assert begun(stored(tmp_path, wrapped))[1] == [lines]
    _, (lines,) = begun(stored(tmp_path, source.state_dict()), counted=False)
    assert lines.endswith("if prep finds as many classes as it has, else with a new one")


def test_weights_without_a_head_begin_with_a_new_one(tmp_path):
    state = {k: v for k, v in network().state_dict().items() if "classifier" not in k}
    assert begun(stored(tmp_path, state))[1][0].endswith("is new: there is none there, 3 here")


def of_channels(count, **more):
    """Return a network whose first kernels have `count` input channels."""
    source = network(**more)
    conv = next(m for m in source.modules() if isinstance(m, nn.Conv2d))
    conv.weight = nn.Parameter(torch.randn(conv.out_channels, count, *conv.kernel_size))
    return source


def test_weights_for_grey_images_are_converted_and_reported(tmp_path):
    source = of_channels(1)
    made, lines = begun(stored(tmp_path, source.state_dict()))
    grey = torch.randn(2, 1, 8, 8)
    source.features[0].in_channels = 1
    torch.testing.assert_close(made.eval()(grey.expand(-1, 3, -1, -1)), source(grey))
    assert lines[1].startswith("start: the kernels of features.0.weight are for grey images; each")
    assert len(begun(stored(tmp_path, network().state_dict()))[1]) == 1


@pytest.mark.parametrize("count", [2, 4])
def test_weights_for_images_of_other_channels_are_refused_with_the_cure(tmp_path, count):
    path = stored(tmp_path, of_channels(count).state_dict())
    with pytest.raises(UserError) as refused:
        begun(path)
    assert f"features.0.weight is 4x{count}x3x3 there and 4x3x3x3 here. They are for" in str(
        refused.value
    )
    assert str(refused.value).endswith(f"of {count} channels; give weights for images of 1 or 3")


def test_the_stem_that_weights_for_grey_images_have_is_named(tmp_path):
    large = model("torchvision", "resnet18", small_stem=False)
    state = of_channels(1, family="torchvision", name="resnet18", small_stem=False).state_dict()
    asked = large.model_copy(
        update={"small_stem": True, "pretrained": str(stored(tmp_path, state))}
    )
    with pytest.raises(UserError, match=r"conv1.weight is 64x1x7x7 .* model.small_stem=false"):
        pretrained.begin(architectures.build(asked, 3), asked, 3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"widths": [[4], [8]]},
            "does not fit model.name=v: features.4.weight is 8x4x3x3 there and 6x4x3x3 here; "
            "features.4.bias is 8 there and 6 here; features.5.weight is 8 there and 6 here; "
            "and 4 more. Choose the model= and model.name=",
        ),
        ({"widths": [[4]]}, "features.4.weight is not there; features.4.bias is not there; feat"),
        (
            {"widths": [[4], [6], [6]]},
            "features.8.bias is not here; features.8.weight is not here; features.9",
        ),
    ],
)
def test_weights_of_another_network_are_refused_with_three_differences(tmp_path, other, message):
    (tmp_path / "files").mkdir()
    (tmp_path / "config.yaml").write_text("of: another project")
    path = stored(tmp_path / "files", network(**other).state_dict())
    with pytest.raises(UserError) as refused:
        begun(path)
    assert message in str(refused.value)


def test_weights_of_a_run_of_another_network_name_its_settings(tmp_path):
    run = make_run(tmp_path, "teacher", "model.widths=[[4],[8]]")
    path = stored(run / "fuse", network(widths=[[4], [8]]).state_dict())
    with pytest.raises(
        UserError, match=r"That run has model.name=vgg_small, model.widths=\[\[4\],\[8\]\]"
    ):
        begun(path)


def test_a_refusal_names_no_setting_that_the_other_run_lacks(tmp_path):
    run = make_run(tmp_path, "teacher")
    path = run / "fuse" / "model.safetensors"
    kind = Timm(family="timm", name="resnet10t")
    message = "That run has model.name=vgg_small, model.family=vgg"
    assert next(pretrained._cures(path, kind, nn.Sequential(), {})) == message


def test_a_network_with_branches_is_refused_with_the_cure(tmp_path):
    grown = network()
    dyrep.expand(grown, form="linear")
    with pytest.raises(UserError, match="have branches: give the name of the run"):
        begun(stored(tmp_path, grown.state_dict()))


def test_the_stem_that_weights_have_is_named(tmp_path):
    large = model("torchvision", "resnet18", small_stem=False)
    path = stored(tmp_path, architectures.build(large, 5).state_dict())
    asked = large.model_copy(update={"small_stem": True, "pretrained": str(path)})
    with pytest.raises(UserError, match=r"conv1.weight is 64x3x7x7 .* model.small_stem=false"):
        pretrained.begin(architectures.build(asked, 5), asked, 5)


@pytest.mark.parametrize("form", [None, "linear", "batchnorm"])
def test_a_bias_added_by_fusing_is_kept_in_the_network_and_its_structure(tmp_path, form):
    bare = model("mobilenet_v1", "m", width=0.1, small_stem=True)
    source = architectures.build(bare, 3)
    state = source.state_dict() | {"features.0.bias": torch.ones(8)}
    asked = bare.model_copy(update={"pretrained": str(stored(tmp_path, state))})
    made = architectures.build(bare, 3)
    pretrained.begin(made, asked, 3)
    assert made.features[0].bias.tolist() == [1.0] * 8
    if form:
        dyrep.expand(made, ["features.0"], form=form)
    again = architectures.build(bare, 3)
    dyrep.apply_structure(again, dyrep.structure(made))
    again.load_state_dict(made.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(images), made.eval()(images))


def test_batch_norms_without_effect_are_noted(tmp_path):
    source = network()
    source.features[1].running_var.fill_(1 - source.features[1].eps)
    assert "note: 1 batch norms" in begun(stored(tmp_path, source.state_dict()))[1][1]


def test_a_new_head_cannot_be_frozen(tmp_path):
    path = stored(tmp_path, network(classes=7).state_dict())
    with pytest.raises(UserError, match=r"freeze keeps classifier.weight, whose values are random"):
        begun(path, freeze=["classifier"])
    assert "frozen: 2 of 10" in begun(path, freeze=["features.0"])[1][1]


@pytest.mark.parametrize(
    ("settings", "head"),
    [({}, {"classifier.weight", "classifier.bias"}),
     ({"family": "torchvision", "name": "squeezenet1_1", "small_stem": False},
      {"classifier.1.weight", "classifier.1.bias"})],
)  # fmt: skip
def test_the_head_consists_of_the_parameters_that_depend_on_the_classes(settings, head):
    drawn = torch.get_rng_state()
    assert architectures.head(model(**settings), 3) == head
    assert torch.equal(torch.get_rng_state(), drawn)
