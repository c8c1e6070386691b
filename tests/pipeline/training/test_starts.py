"""Test trainings with given weights, frozen layers, a rate of the head, or a given structure."""

import json

import pytest
import torch
from safetensors.torch import save_file

import dyrep
from pipeline.config.model import Structured, Vgg
from pipeline.display.errors import Interrupted, UserError
from pipeline.networks import architectures, structures
from pipeline.planning import outline
from pipeline.planning.outline.__main__ import start
from tests.pipeline.training.learning import STEPS, batch, equal, learner

pytestmark = pytest.mark.long

SHORT = ("train.epochs=3", "method.adjust_interval=1", "method.last_adjust_epoch=1",
         "train.deterministic=true", "train.warmup_epochs=0", "train.lr=0.01")  # fmt: skip
GROWING = {
    "dyrep": ("method=dyrep", "method.calibration_batches=2"),
    "grow": ("method=grow", "method.choose=random", "method.max_cost=3", "method.cost=flops"),
}
IMAGES = batch(7).images


def finished(folder, classes=3):
    """Return a network with batch norm statistics, and the settings that start from its weights."""
    torch.manual_seed(3)
    model = Vgg(name="vgg_small", family="vgg", widths=[[4], [4]])
    source = architectures.build(model, classes)
    source.train()(IMAGES)  # gives the batch norms their statistics
    save_file(source.state_dict(), folder / "w.safetensors")
    return source.eval(), (f"model.pretrained={folder}/w.safetensors",)


@pytest.mark.parametrize("method", GROWING)
def test_growing_starts_from_given_weights_and_resumes_to_the_same_bits(training, tmp_path, method):
    source, asked = finished(tmp_path)
    settings = (*asked, *GROWING[method], *SHORT, "train.head_lr=0.1", "train.ema=0.9",
                "model.freeze=[features.0,features.1]")  # fmt: skip
    whole = training(*settings)
    made = whole.state.learner
    assert torch.equal(made.model.eval()(IMAGES), source(IMAGES))
    assert whole.run()["grown"] > 0
    assert {entry["path"] for entry in dyrep.structure(made.model)["blocks"]} == {"features.4"}
    for name in ("features.0.weight", "features.1.running_mean", "features.1.running_var"):
        for network in (made.model, made.ema.module):
            assert torch.equal(network.state_dict()[name], source.state_dict()[name])
    assert not torch.equal(made.model.features[5].running_mean, source.features[5].running_mean)
    with pytest.raises(Interrupted):
        training(*settings, until=STEPS + 2, where="killed").run()
    (tmp_path / "w.safetensors").unlink()  # a resumed training needs only its checkpoint
    resumed = training(*settings, where="killed")
    assert resumed.run()["grown"] > 0
    equal(whole, resumed)


def test_a_head_has_a_rate_of_its_own_on_the_same_schedule():
    made = learner("train.head_lr=0.5", "train.lr=0.01", "train.schedule=linear",
                   "train.warmup_epochs=0", "method=plain")  # fmt: skip
    head = set(made.model.classifier.parameters())
    rates = {(group["lr"], set(group["params"]) <= head) for group in made.optimizer.param_groups}
    assert rates == {(0.01, False), (0.5, True)}
    made.update(batch(), lambda _: None)
    shares = [group["lr"] / group["initial_lr"] for group in made.optimizer.param_groups]
    assert shares == pytest.approx([shares[0]] * len(shares)) and shares[0] < 1
    # the reported rate is that of the other layers
    assert made.lr == pytest.approx(0.01 * shares[0])


def test_layer_decay_and_the_rate_of_the_head_work_together():
    made = learner("train.head_lr=0.5", "train.lr=0.01", "train.layer_decay=0.5", "method=plain",
                   "train.warmup_epochs=0")  # fmt: skip
    rates = [group["initial_lr"] for group in made.optimizer.param_groups if group["params"]]
    assert rates[:2] == [0.5, 0.5] and rates[2:] == sorted(rates[2:]) and rates[-1] <= 0.01


def test_frozen_parameters_are_not_optimized():
    made = learner("model.freeze=[features]", "method=plain")
    learning = [p for group in made.optimizer.param_groups for p in group["params"]]
    assert learning == list(made.model.classifier.parameters())
    made.update(batch(), lambda _: None)


@pytest.mark.parametrize("source", ["dyrep", "grow"])
def test_a_structure_is_trained_from_scratch(training, tmp_path, source):
    grown = learner(*GROWING[source])
    if source == "dyrep":
        block = dyrep.expand(grown.model, ["features.4"], form="batchnorm")
    else:
        block = dyrep.expand(grown.model, ["features.4"], form="linear")
    assert block.grown
    path = tmp_path / "structure.json"
    path.write_text(json.dumps({**dyrep.structure(grown.model), "left": {}}))
    asked = ("method=structure", f"method.structure={path}", "train.epochs=1",
             "train.warmup_epochs=0", "train.deterministic=true")  # fmt: skip
    whole = training(*asked)
    assert dyrep.structure(whole.state.learner.model) == dyrep.structure(grown.model)
    assert whole.state.learner.log_lines == [
        f"structure: 1 block of branches with random weights, as in {path}"
    ]
    other = training(*asked, where="other")
    equal(whole, other)
    with pytest.raises(Interrupted):
        training(*asked, until=2, where="killed").run()
    whole.run()
    resumed = training(*asked, where="killed")
    resumed.run()
    equal(whole, resumed)


@pytest.mark.parametrize(
    ("description", "more", "message"),
    [
        ({"blocks": [{"path": "stem", "branches": ["kxk"], "fixed": False}]}, (), "has no stem"),
        ({"version": 9}, (), "structure of version 9, not 1; choose the network of that run"),
        ({}, ("model.freeze=[features.4]",), "branches on features.4, which model.freeze keeps"),
    ],
)
def test_a_structure_that_does_not_fit_the_network_is_refused(
    training, tmp_path, description, more, message
):
    grown = learner("method=plain")
    dyrep.expand(grown.model, ["features.4"], form="linear")
    path = tmp_path / "structure.json"
    path.write_text(json.dumps(dyrep.structure(grown.model) | description))
    with pytest.raises(UserError) as refused:
        training("method=structure", f"method.structure={path}", *more)
    assert message in str(refused.value)


def test_a_structure_that_was_changed_since_is_refused(tmp_path):
    (tmp_path / "s.json").write_text("{}")
    asked = Structured(name="structure", kind="structure", structure=str(tmp_path / "s.json"),
                       structure_sha256="0" * 64)  # fmt: skip
    with pytest.raises(UserError, match="has changed since the run was frozen; restore it"):
        structures.apply(torch.nn.Sequential(), asked)


def test_recalibrating_leaves_frozen_norms_alone(training, tmp_path):
    source, asked = finished(tmp_path)
    made = training(*asked, "method=plain", "model.freeze=[features.1]", "train.recalibrate=2",
                    "train.epochs=1", "train.warmup_epochs=0", "train.ema=0.9")  # fmt: skip
    made.run()
    for network in (made.state.learner.model, made.state.learner.ema.module):
        assert torch.equal(network.features[1].running_var, source.features[1].running_var)
        assert not torch.equal(network.features[5].running_var, source.features[5].running_var)


def test_weights_of_another_network_end_a_launch_before_anything_is_written(inside, tmp_path):
    finished(tmp_path)
    code, _, errors = inside("method=plain", f"model.pretrained={tmp_path}/w.safetensors")
    assert code == 2
    assert "does not fit model.name=vgg_small: features.0.weight is 4x3x3x3 there and 32x" in errors
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert not inside.root.exists()


def test_the_plan_shows_what_a_training_starts_from(inside, tmp_path, monkeypatch):
    finished(tmp_path)
    monkeypatch.setattr(outline, "ask", lambda _, request: start(json.loads(request)))
    code, out, _ = inside("method=grow", f"model.pretrained={tmp_path}/w.safetensors",
                          "model.widths=[[4],[4]]", "model.freeze=[features.0]", "dry_run=true")  # fmt: skip
    assert code == 0
    for words in ("1 convolution can grow, kernels start as they were trained", "w.safetensors, but",
                  "is new: 3 classes there, 10 here", "frozen: 2 of 10 parameters"):  # fmt: skip
        assert words in out


def test_a_branch_before_a_frozen_norm_keeps_the_norms_statistics(training, tmp_path):
    _, asked = finished(tmp_path)
    made = training(*asked, *GROWING["dyrep"], *SHORT, "model.freeze=[features.0,features.5]")
    assert made.run()["grown"] == 1
    model = made.state.learner.model
    (grown,) = dyrep.structure(model)["blocks"]
    assert (grown["path"], grown["fixed"]) == ("features.4", True)
    fresh = architectures.build(Vgg(name="v", family="vgg", widths=[[4], [4]]), 3)
    dyrep.apply_structure(fresh, dyrep.structure(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(IMAGES), model.eval()(IMAGES))
