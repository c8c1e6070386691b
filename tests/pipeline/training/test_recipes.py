"""Test optimizers and schedules: each combination grows, is stopped, and resumes to the same bits."""

import json
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from timm.scheduler import create_scheduler_v2
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torchvision.ops import StochasticDepth

import dyrep
from pipeline.config.train import Schedule
from pipeline.display.errors import Interrupted, UserError
from pipeline.networks import architectures, optimizers
from pipeline.networks.layers import depths
from pipeline.planning import compose
from pipeline.records import packing, rundir
from pipeline.training import checkpoint, optim
from pipeline.training.cost import Cost
from pipeline.training.pace import Pace
from pipeline.training.standing import Standing
from tests.pipeline.training.learning import STEPS, checked, equal, rows
from tests.runs import composed

pytestmark = pytest.mark.long

GROWN = {
    "grow": ("method=grow", "method.choose=random", "method.max_cost=3", "method.cost=flops"),
    "dyrep": ("method=dyrep", "method.calibration_batches=2"),
    "linear": ("method=dyrep", "method.form=linear"),
}
PLAIN = ("train.epochs=4", "train.deterministic=true", "train.ema=0.9", "train.clip_grad=1",
         "train.warmup_epochs=0", "train.lr=0.01")  # fmt: skip
HOLDS = (*PLAIN, "method.adjust_interval=1", "method.last_adjust_epoch=2")
TOGETHER = [
    ("sgd", "constant", "grow", "train.accumulate=3"),
    ("adamw", "step", "dyrep", "train.decay_epochs=2 train.accumulate=2 train.nonfinite=skip"),
    ("lamb", "onecycle", "linear", "train.layer_decay=0.7 train.head_lr=0.02"),
    ("muon", "linear", "grow", "train.ema_warmup=true"),
    ("adafactor", "cosine", "dyrep", "train.patience=3"),
    (
        "sgd",
        "plateau",
        "linear",
        "train.decay_epochs=1 train.patience=3 train.ship=best train.accumulate=2",
    ),
    ("adamw", "restarts", "grow", "train.cycle_epochs=1 train.cycle_growth=2 train.ship=best"),
    ("lion", "polynomial", "grow", "train.decay_power=2 train.accumulate=6"),
    (
        "sgd",
        "exponential",
        "dyrep",
        "train.decay_epochs=1 train.layer_decay=0.5 model.freeze=[features.0]",
    ),
    ("nadamw", "tanh", "linear", "train.accumulate=2"),
    ("lamb", "wsd", "grow", "train.decay_epochs=3 train.ema_warmup=true"),
    ("adamw", "rsqrt", "grow", "train.warmup_epochs=1 train.head_lr=0.02"),
]


@pytest.mark.parametrize(("optimizer", "schedule", "method", "more"), TOGETHER)
def test_a_recipe_stopped_amid_growth_resumes_to_the_same_bits(
    training, optimizer, schedule, method, more
):
    settings = (f"train.optimizer={optimizer}", f"train.schedule={schedule}", *GROWN[method],
                *HOLDS, "train.decay_norms=true", *more.split())  # fmt: skip
    whole = training(*settings)
    result = whole.run()
    assert result["grown"] > 0
    with pytest.raises(Interrupted):
        training(*settings, until=STEPS + 2, where="killed").run()
    resumed = training(*settings, where="killed")
    assert resumed.run()["grown"] == result["grown"]
    equal(whole, resumed)
    one, other = ([r["lr"] for r in rows(t, rundir.HISTORY) if r["kind"] == "step"]
                  for t in (whole, resumed))  # fmt: skip
    assert one == other and len(one) == 4 * STEPS
    shipped = [load_file(t.context.dir / "model.safetensors") for t in (whole, resumed)]
    assert all(map(torch.equal, shipped[0].values(), shipped[1].values()))


@pytest.mark.parametrize("method", ["dyrep", "grow"])
def test_dropout_resumes_to_the_same_bits(training, monkeypatch, method):
    build = architectures.build

    def dropping(*args):
        network = build(*args)
        network.features.add_module("drop_path", StochasticDepth(0.3, "row"))
        network.features.add_module("drop", torch.nn.Dropout(0.2))
        return network

    monkeypatch.setattr(architectures, "build", dropping)
    settings = (*GROWN[method], *HOLDS, "train.accumulate=2")
    whole = training(*settings)
    assert whole.run()["grown"] > 0
    with pytest.raises(Interrupted):
        training(*settings, until=STEPS + 2, where="killed").run()
    resumed = training(*settings, where="killed")
    resumed.run()
    equal(whole, resumed)


@pytest.mark.parametrize("budget", [(), ("train.budget.plain_epochs=10",)])
@pytest.mark.parametrize(
    ("schedule", "shares"),  # after 0, 5, 9 and 10 of 10 epochs
    [
        ("cosine", [1, 0.5, 0.024, 0]),
        ("linear", [1, 0.5, 0.1, 0]),
        ("polynomial train.decay_power=2", [1, 0.25, 0.01, 0]),
        ("constant", [1, 1, 1, 1]),
        ("onecycle", [0.04, 0.812, 0.05, 4e-6]),
        ("step train.decay_epochs=3 train.decay_rate=0.5", [1, 0.5, 0.125, 0.125]),
        ("step train.decay_epochs=[9,5]", [1, 0.1, 0.01, 0.01]),
        ("exponential train.decay_epochs=5 train.decay_rate=0.5", [1, 0.5, 0.287, 0.25]),
        ("restarts train.cycle_epochs=4", [1, 0.854, 0.854, 0.5]),
        ("restarts train.cycle_epochs=2 train.cycle_growth=2", [1, 0.146, 0.691, 0.5]),
        ("plateau train.decay_epochs=3", [1, 1, 1, 1]),
        ("tanh", [1, 0.982, 0.018, 0.0025]),
        ("wsd", [1, 1, 0.293, 0]),
        ("wsd train.decay_epochs=10", [1, 0.293, 0.051, 0]),
    ],
)
def test_a_schedule_depends_only_on_the_progress_of_the_training(schedule, shares, budget):
    length = budget or ("train.epochs=10",)
    asked = f"train.schedule={schedule} train.warmup_epochs=0".split()
    config = checked(*asked, *length)
    spent = Cost(config, 3, None)
    pace = Pace(config.train, STEPS, spent)
    for way, share in zip((0, 0.5, 0.9, 1), shares, strict=True):
        spent.plain_steps = way * 10 * STEPS
        assert pace.lr_factor(way * 10 * STEPS) == pytest.approx(share, abs=2e-3)


def test_every_schedule_is_in_the_table_of_recipes():
    assert {schedule for _, schedule, *_ in TOGETHER} == set(get_args(Schedule))


@pytest.mark.parametrize("growth", [1, 2, 3])
def test_warm_restarts_are_those_of_torch(growth):
    config = checked("train.schedule=restarts", "train.cycle_epochs=2", f"train.cycle_growth={growth}", "train.epochs=20",
                     "train.warmup_epochs=0")  # fmt: skip
    pace = Pace(config.train, STEPS, Cost(config, 3, None))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = CosineAnnealingWarmRestarts(optimizer, 2 * STEPS, growth)
    for step in range(20 * STEPS):
        assert pace.lr_factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("schedule", "warmup"), [("tanh", 0), ("wsd", 0), ("wsd", 5), ("rsqrt", 5)]
)
@pytest.mark.parametrize("budget", [(), ("train.budget.plain_epochs=20",)])
def test_schedules_of_timm_are_those_of_timm(schedule, warmup, budget):
    asked = (f"train.schedule={schedule}", f"train.warmup_epochs={warmup}")
    config = checked(*asked, *(budget or ("train.epochs=20",)))
    spent = Cost(config, 3, None)
    pace = Pace(config.train, STEPS, spent)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs, _ = create_scheduler_v2(optimizer, schedule, num_epochs=20, warmup_epochs=warmup,
                                    step_on_epochs=False, updates_per_epoch=STEPS)  # fmt: skip
    for step in range(warmup * STEPS, 20 * STEPS):
        spent.plain_steps = step
        assert pace.lr_factor(step) == pytest.approx(theirs._get_lr(step)[0], abs=1e-9)


# -- what the validation after an epoch decides ---------------------------------------------------


def judged(*overrides, losses=(), top1=()):
    """Return the `Standing` after validations with these results, resumed before each epoch."""
    recipe, saved = checked("train.epochs=20", *overrides).train, None
    for epoch in range(max(len(losses), len(top1))):
        standing = Standing(recipe, packing.loads(packing.dumps(saved)))
        loss = losses[epoch] if epoch < len(losses) else 1.0
        standing.record(epoch + 1, {"val_loss": loss, "top1": top1[epoch] if top1 else 50.0})
        saved = standing.state()
    return standing


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([5, 4, 3, 2], 0),
        ([5, 5, 5], 1),
        ([5, 6, 4, 4, 4, 4, 4], 2),
        ([5, float("nan"), float("nan")], 1),
        ([float("nan"), 5, 4, 3], 0),
    ],
)
def test_on_a_plateau_the_learning_rate_falls(losses, falls):
    standing = judged("train.schedule=plateau", "train.decay_epochs=2", losses=losses)
    assert standing.falls == falls


@pytest.mark.parametrize(
    ("top1", "over", "best"),
    [([50, 60, 60, 70], False, 4), ([50, 60, 60, 59], True, 2), ([60, 50, 55], True, 1)],
)
def test_a_training_ends_when_nothing_gets_better(top1, over, best):
    standing = judged("train.patience=2", top1=top1)
    assert (standing.over, standing.best["epoch"]) == (over, best)


def test_the_learning_rate_of_the_step_after_a_fall_is_the_new_one(training, monkeypatch):
    monkeypatch.setattr(
        "pipeline.training.validation.validate",
        lambda *_: {"val_loss": 1.0, "top1": 50.0, "top5": 90.0},
    )
    made = training("method=plain", *PLAIN, "train.epochs=3", "train.schedule=plateau",
                    "train.decay_epochs=1")  # fmt: skip
    made.run()
    lrs = [row["lr"] for row in rows(made, rundir.HISTORY) if row["kind"] == "step"]
    assert lrs == pytest.approx([0.01] * 2 * STEPS + [0.001] * STEPS)


def test_the_best_epoch_is_shipped_with_its_structure(training, monkeypatch):
    seen, accuracies = [], iter([40.0, 70.0, 60.0, 60.0, 60.0])

    def validate(model, *_):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"val_loss": 1.0, "top1": next(accuracies), "top5": 90.0}

    monkeypatch.setattr("pipeline.training.validation.validate", validate)
    made = training(*GROWN["dyrep"], *HOLDS, "train.epochs=10", "train.patience=3",
                    "method.last_adjust_epoch=4", "train.ship=best")  # fmt: skip
    result = made.run()
    assert (result["epochs"], result["shipped_epoch"], result["top1"]) == (5, 2, 70.0)
    shipped = load_file(made.context.dir / "model.safetensors")
    assert shipped.keys() == seen[1].keys() != seen[-1].keys()
    assert all(torch.equal(shipped[key], seen[1][key]) for key in shipped)


def test_a_best_epoch_that_is_damaged_is_not_shipped(training):
    made = training("method=plain", *PLAIN, "train.ship=best")
    made.run()
    with pytest.raises(UserError, match=r"is not of epoch 9, the best.* again=\[train\]"):
        made.saving.load_best(9)
    best = checkpoint.best(made.context.dir / "checkpoints")
    best.write_bytes(best.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"instead of .* again=\[train\].* train.ship=last"):
        made.saving.load_best(made.state.standing.best_epoch)


# -- learning rates of layers ---------------------------------------------------------------------

NETWORKS = [
    ("model=vgg_small model.widths=[[4],[4,8]]", 4, "linear"),
    ("model=vgg_small model.widths=[[4],[4,8]]", 4, "batchnorm"),
    ("model=resnet18", 10, "batchnorm"),  # stem, eight blocks, classifier
    ("model=timm model.name=resnet10t", 6, "linear"),
]


@pytest.mark.parametrize(("model", "count", "form"), NETWORKS)
def test_new_branches_learn_at_the_rate_of_their_layer(model, count, form):
    asked = ("name=x", "train.layer_decay=0.5", "method=dyrep", "train.lr=0.8", *model.split())
    config = compose.validated(json.loads(composed(*asked)))
    network = architectures.build(config.model, 3)
    before = depths(network)
    assert list(dict.fromkeys(before.values())) == list(range(max(before.values()) + 1))
    assert len(set(before.values())) == count
    optimizer = optimizers.build(network, config.train)
    optim.schedule(optimizer, Pace(config.train, STEPS, Cost(config, 3, None)))
    evolver = dyrep.DyRep(network, optimizer, saliency="random", form=form, grow=2)
    images = torch.randn(2, 3, 16, 16)
    network(images).sum().backward()
    evolver.accumulate()
    assert evolver.adjust([images])
    anew = optimizers.build(network, config.train)
    assert len(anew.param_groups) == len(optimizer.param_groups)
    for grown, built in zip(optimizer.param_groups, anew.param_groups, strict=True):
        assert [id(p) for p in grown["params"]] == [id(p) for p in built["params"]]
        assert grown["initial_lr"] == built["lr"]
    rates = {id(p): group["lr"] for group in anew.param_groups for p in group["params"]}
    last = max(before.values())
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == 0.8 * 0.5 ** (last - depths(network)[name])


def test_strengths_of_branches_do_not_decay_even_if_norms_do(training):
    made = training(*GROWN["linear"], *HOLDS, "train.decay_norms=true")
    made.run()
    decays = [group["weight_decay"] > 0 for group in made.state.learner.optimizer.param_groups]
    assert decays == [True, True, False]
    assert made.state.learner.optimizer.param_groups[2]["params"]
