"""Test that a training ends when it has cost as many plain epochs as its budget allows."""

import json
from types import SimpleNamespace

import pytest
import torch

from pipeline.display.errors import Interrupted, UserError
from pipeline.planning import compose
from pipeline.records import rundir
from pipeline.training import cost
from pipeline.training.announce import Announcer
from pipeline.training.cost import Cost, Price
from pipeline.training.pace import Pace
from tests.pipeline.training.learning import ALONE, STEPS, TINY, equal, rows
from tests.runs import composed

pytestmark = pytest.mark.long

BUDGET = "train.budget.plain_epochs=8"
GROW = (BUDGET, "method=grow", "method.adjust_interval=1", "method.last_adjust_epoch=3",
        "method.max_cost=3", "method.grow=3",
        "method.choose=random",  # grows without regard to the expected gain
        "method.branches=[1x1_kxk,1x1]")  # fmt: skip


# -- the end of a training --------------------------------------------------------------------------


def test_a_plain_network_trains_the_same_with_a_budget_as_with_epochs(training):
    by_epochs = training("method=plain", "train.epochs=3", "train.warmup_epochs=1")
    result = by_epochs.run()
    lr = [row["lr"] for row in rows(by_epochs, rundir.HISTORY) if row["kind"] == "step"]
    by_budget = training(
        "method=plain", "train.budget.plain_epochs=3", "train.warmup_epochs=1", where="other"
    )
    assert by_budget.run() == {**result, "plain_epochs": 3.0}
    assert lr == [row["lr"] for row in rows(by_budget, rundir.HISTORY) if row["kind"] == "step"]
    equal(by_epochs, by_budget)


@pytest.mark.parametrize("exact", [True, False], ids=["deterministic", "timed"])
def test_a_training_stopped_amid_growth_ends_at_the_same_step_with_the_same_bits(
    training, monkeypatch, exact
):
    settings = (*GROW, f"train.deterministic={str(exact).lower()}", "method.cost=flops")
    clock = {"price": 1.7}
    if not exact:
        monkeypatch.setattr(cost, "_times_plain", lambda *_: Price(clock["price"], 0.5))
        monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    whole = training(*settings)
    result = whole.run()
    grown = rows(whole, rundir.GROWTH)
    assert result["grown"] > 1 and result["step_cost"] > 1
    assert result["steps"] < 8 * STEPS and result["steps"] % STEPS, (
        "the training ended at the end of an epoch"
    )
    assert result["plain_epochs"] <= 8 < result["plain_epochs"] + result["step_cost"] / STEPS
    assert result["adjusting_steps"] > 0

    last = max(row["step"] for row in grown)
    for until in (2, last - 2, last + 2, result["steps"] - 1) if exact else (last + 2,):
        with pytest.raises(Interrupted):
            training(*settings, until=until, where="killed").run()
    clock["price"] = 5.0  # the resumed training keeps its price and does not measure again
    resumed = training(*settings, where="killed")
    assert {**resumed.run(), "grown": result["grown"]} == result
    equal(whole, resumed)
    again = rows(resumed, rundir.GROWTH)
    kept = ("step", "layer", "branches", "step_cost", "adjusting_steps")
    assert [[row[key] for key in kept] for row in again] == [
        [row[key] for key in kept] for row in grown
    ]
    steps = [row["step"] for row in rows(resumed, rundir.HISTORY) if row["kind"] == "step"]
    assert steps == list(range(1, result["steps"] + 1))


def test_the_learning_rate_follows_the_spent_budget_and_reaches_zero(training):
    made = training(*GROW, "train.deterministic=true", "train.warmup_epochs=1")
    made.run()
    lr = [row["lr"] for row in rows(made, rundir.HISTORY) if row["kind"] == "step"]
    assert lr[STEPS - 1] == max(lr) == 0.1 and lr[-1] < 0.01 * max(lr)
    assert sorted(lr[STEPS:], reverse=True) == lr[STEPS:]


@pytest.mark.parametrize(("cost", "ends"), [(2.0, False), (4.0, True)])
def test_no_adjustment_takes_more_of_the_budget_than_it_leaves(training, capsys, cost, ends):
    made = training(*GROW, "train.deterministic=true", "train.budget.plain_epochs=3")
    made.state.cost.last_adjustment = cost  # after two of three epochs, 6 plain steps are left
    assert (made.run()["grown"] == 0) == ends
    if ends:
        assert "the last adjustment cost 4 plain steps, and the budget has 6 left" in (
            capsys.readouterr().out
        )


def test_a_first_adjustment_beyond_the_budget_is_left_out(training, capsys):
    made = training(
        "train.budget.plain_epochs=4", "method=dyrep", "method.adjust_interval=1",
        "method.calibration_batches=20", "train.deterministic=true",
    )  # fmt: skip
    result = made.run()
    assert result["grown"] == 0 and result["plain_epochs"] == 4
    expected = f"an adjustment costs about 20 plain steps, and the budget has {3 * STEPS} left"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("form, needed", [("linear", 1), ("batchnorm", 20)])
def test_growth_draws_as_many_batches_as_it_needs(training, form, needed):
    made = training(
        "method=dyrep", f"method.form={form}", "train.epochs=3", "method.adjust_interval=2",
        "method.last_adjust_epoch=2", "train.deterministic=true",
    )  # fmt: skip
    made.run()
    assert made.images.drawn == needed


def test_a_budget_that_pays_for_no_step_is_refused(training, monkeypatch):
    monkeypatch.setattr(cost, "_times_plain", lambda *_: Price(2.0, 100.0))
    with pytest.raises(UserError, match=r"train.budget.plain_epochs=8 is spent before the first"):
        training(BUDGET, "method=dbb").run()


# -- steps left, learning rate and growth -----------------------------------------------------------


@pytest.fixture
def pace():
    config = compose.validated(json.loads(composed(*TINY, BUDGET, "train.warmup_epochs=2")))
    counted = Cost(config, 3, None)
    return Pace(config.train, 10, counted), counted


@pytest.mark.parametrize(
    ("spent", "price", "left", "share"),
    [
        (0.0, 1.0, 80, 0.05),  # the warm-up takes two plain epochs
        (10.0, 2.0, 35, 0.55),
        (20.0, 2.0, 30, 1.0),
        (50.0, 1.5, 20, 0.5),  # halfway between the warm-up and the end
        (78.6, 1.5, 0, 0.0),  # the rest of the budget pays for no step
        (95.0, 1.5, 0, 0.0),  # an adjustment cost more than was left
    ],
)
def test_the_progress_of_a_training_is_the_share_of_its_budget_that_is_spent(
    pace, spent, price, left, share
):
    pace, counted = pace
    counted.plain_steps, counted.per_step = spent, price
    assert pace.steps_left(123) == left
    assert pace.lr_factor(123) == pytest.approx(share, abs=2e-3)
    assert pace.plain_epochs(123) == spent / 10


def test_progress_shows_the_spent_budget_and_the_steps_left_at_the_current_price(pace):
    pace, counted = pace
    counted.plain_steps, counted.per_step = 32.0, 1.5
    reported = []
    context = SimpleNamespace(started=0.0, progress=lambda *words: reported.append(words))
    announcer = Announcer(context, SimpleNamespace(main=True))
    announcer.pace = pace
    announcer.progress(25, {})
    assert reported[0][:3] == (25, 25 + 32, "epoch 3, spent 3.2 of 8 plain epochs")


@pytest.mark.parametrize(
    ("price", "adjusting", "adjusts"),
    [
        (1.0, 0.0, [2, 4, 6]),  # every 2 epochs up to epoch 6, as without a budget
        (
            1.3,
            0.0,
            [2.6, 5.2, 6.5],
        ),  # at the first end of an epoch after 2, 4 and 6
        (3.0, 0.0, [3, 6]),
        (1.0, 4.5, [2]),  # no adjustment after the last epoch of growth
    ],
)
def test_adjustments_come_by_the_spent_budget_and_not_by_the_epoch(
    training, price, adjusting, adjusts
):
    growth = training(
        "method=grow", "method.adjust_interval=2", "method.last_adjust_epoch=6"
    ).state.growth
    growth._evolver.adjust = lambda calibration: []
    done, epochs = [], 0.0
    while epochs < 12:
        epochs += price
        if growth.due(epochs, price):
            done.append(round(epochs, 1))
            growth.adjust([], epochs, 0, 0, 0.0)
            epochs += adjusting
    assert done == adjusts


def test_the_cost_is_counted_in_flops_if_both_networks_do_not_fit_into_memory(pace, monkeypatch):
    import dyrep
    from pipeline.networks import architectures

    _, counted = pace
    model = architectures.build(counted._config.model, 3)
    dyrep.expand(model, form="linear")
    monkeypatch.setattr(counted, "measure", lambda *_: None)
    message = counted.renew(ALONE, model, torch.no_grad(), 10)
    assert "counted in FLOPs" in message and counted.price > 1


def test_the_time_of_an_adjustment_is_counted(pace, monkeypatch):
    _, counted = pace
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    counted.per_step = 1.5
    with counted.changing(ALONE, step_seconds=0.5):
        pass
    assert counted.plain_steps == counted.adjusting == pytest.approx(3.0 / 0.5 * 1.5)
