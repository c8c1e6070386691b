"""Optimizers and schedules: each grows, is killed and goes on in the same bits."""

import json
from typing import get_args

import pytest
import torch

from pipeline.config.train import Schedule
from pipeline.errors import Interrupted, UserError
from pipeline.networks import optimizers
from pipeline.outline import trial
from pipeline.planning import compose
from pipeline.records import rundir
from pipeline.training.cost import Cost
from pipeline.training.pace import Pace
from tests.pipeline.training.learning import STEPS, TINY, equal, rows
from tests.runs import composed

pytestmark = pytest.mark.long

GROWN = {
    "grow": ("method=grow", "method.choose=random", "method.max_cost=3", "method.cost=flops"),
    "dyrep": ("method=dyrep", "method.calibration_batches=2"),
    "linear": ("method=dyrep", "method.form=linear"),
}
HOLDS = ("train.epochs=4", "method.adjust_interval=1", "method.last_adjust_epoch=2",
         "train.deterministic=true", "train.ema=0.9", "train.clip_grad=1", "train.warmup_epochs=0",
         "train.lr=0.01")  # fmt: skip
TOGETHER = [
    ("sgd", "constant", "grow"),
    ("adamw", "step", "dyrep"),
    ("lamb", "onecycle", "linear"),
    ("muon", "linear", "grow"),
    ("adafactor", "cosine", "dyrep"),
]


@pytest.mark.parametrize(("optimizer", "schedule", "method"), TOGETHER)
def test_killed_amid_growth_it_goes_on_in_the_same_bits(training, optimizer, schedule, method):
    settings = (f"train.optimizer={optimizer}", f"train.schedule={schedule}", *GROWN[method],
                *HOLDS, "train.decay_norms=true",
                *(("train.decay_epochs=2",) if schedule == "step" else ()))  # fmt: skip
    whole = training(*settings)
    told = whole.run()
    assert told["grown"] > 0
    with pytest.raises(Interrupted):
        training(*settings, until=STEPS + 2, where="killed").run()
    resumed = training(*settings, where="killed")
    assert resumed.run()["grown"] == told["grown"]
    equal(whole, resumed)
    one, other = ([r["lr"] for r in rows(t, rundir.HISTORY) if r["kind"] == "step"]
                  for t in (whole, resumed))  # fmt: skip
    assert one == other and len(one) == 4 * STEPS


def checked(*overrides):
    return compose.check(json.loads(composed(*TINY, *overrides)))


@pytest.mark.parametrize("budget", [(), ("train.budget.plain_epochs=10",)])
@pytest.mark.parametrize(
    ("schedule", "shares"),  # at the start, after a half, nine tenths and all of 10 epochs
    [
        ("cosine", [1, 0.5, 0.024, 0]),
        ("linear", [1, 0.5, 0.1, 0]),
        ("constant", [1, 1, 1, 1]),
        ("onecycle", [0.04, 0.812, 0.05, 4e-6]),
        ("step", [1, 0.5, 0.125, 0.125]),
    ],
)
def test_a_schedule_is_a_matter_of_how_far_a_training_is(schedule, shares, budget):
    step = ("train.decay_epochs=3", "train.decay_rate=0.5") if schedule == "step" else ()
    length = budget or ("train.epochs=10",)
    config = checked(f"train.schedule={schedule}", "train.warmup_epochs=0", *length, *step)
    spent = Cost(config, 3, None)
    pace = Pace(config.train, STEPS, spent)
    for way, share in zip((0, 0.5, 0.9, 1), shares, strict=True):
        spent.plain_steps = way * 10 * STEPS
        assert pace.lr_factor(way * 10 * STEPS) == pytest.approx(share, abs=2e-3)


def test_every_schedule_is_tried_here():
    assert {schedule for _, schedule, _ in TOGETHER} == set(get_args(Schedule))


# -- optimizers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("adanw2", "train.optimizer=adanw2 is no optimizer of timm; did you mean"),
        ("adahessian", "train.optimizer=adahessian cannot be used here (RuntimeError"),
        ("adafactorbv", "cannot be resumed (TypeError: param_groups.0.momentum_dtype"),
        ("adamw train.optimizer_args={beta:1}", "args.beta is nothing that adamw takes; valid are"),
        ("adamw train.optimizer_args={betas:[0.9,2.0]}", "Invalid beta parameter at index 1"),
    ],
)
def test_an_optimizer_that_will_not_do_is_refused_before_anything_runs(optimizer, words):
    config = checked(*f"method=dyrep train.lr=0.001 train.optimizer={optimizer}".split())
    with pytest.raises(UserError) as refused:
        trial.attempt(config.train, config.method)
    assert words in str(refused.value) and "\n" not in str(refused.value)


class Drawing(torch.optim.SGD):
    """Draws a number at each step."""

    def step(self, closure=None):
        torch.rand(1)
        return super().step(closure)


def test_an_optimizer_that_draws_numbers_is_refused(monkeypatch):
    monkeypatch.setattr(optimizers, "build", lambda model, _: Drawing(model.parameters(), lr=0.1))
    config = checked("method=plain")
    with pytest.raises(UserError, match="draws random numbers"):
        trial.attempt(config.train, config.method)


class Whole(torch.optim.SGD):
    """Keeps its parameters where nothing that grows joins them."""

    def __init__(self, groups):
        super().__init__(groups, lr=0.1)
        self.all = [p for group in self.param_groups for p in group["params"]]


def test_an_optimizer_that_cannot_follow_is_refused_with_methods_that_grow(monkeypatch):
    monkeypatch.setattr(optimizers, "build", lambda model, _: Whole(model.parameters()))
    for method, refused in (("plain", False), ("dyrep", True), ("grow", True)):
        config = checked(f"method={method}")
        if not refused:
            trial.attempt(config.train, config.method)
            continue
        with pytest.raises(UserError, match=r"cannot follow a network that grows .* method=plain"):
            trial.attempt(config.train, config.method)


def test_strengths_that_grow_do_not_decay_where_norms_do(training):
    made = training(*GROWN["linear"], *HOLDS, "train.decay_norms=true")
    made.run()
    decays = [group["weight_decay"] > 0 for group in made.state.learner.optimizer.param_groups]
    assert decays == [True, True, False]
    assert made.state.learner.optimizer.param_groups[2]["params"]
