"""Test `training.recalibration`: new statistics of batch norms after an epoch, resumed exactly."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from pipeline.display.errors import Interrupted
from pipeline.training import recalibration
from pipeline.training.recalibration import average_statistics
from tests.pipeline.training.learning import ALONE, STEPS, equal

pytestmark = pytest.mark.long

EVERY = ("train.recalibrate=2", "train.epochs=4", "train.warmup_epochs=0", "train.ema=0.9",
         "train.deterministic=true", "checkpoint.interval='100 steps'")  # fmt: skip
GROWING = ("method=dyrep", "method.adjust_interval=2", "method.last_adjust_epoch=3",
           "method.calibration_batches=2", "train.recalibrate_until=3")  # fmt: skip


def test_statistics_are_the_means_over_the_batches_and_nothing_else_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].running_mean.fill_(7.0)
    before = copy.deepcopy(model)
    batches = [torch.randn(5, 3, 6, 6) for _ in range(3)]
    average_statistics([model], batches, ALONE, nullcontext())
    seen = [before[0](batch) for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    assert model[1].momentum == before[1].momentum
    assert all(module.training for module in model.modules())
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_several_processes_take_the_mean_of_their_statistics():
    class Two:
        alone, world_size = False, 2

        def total(self, own):
            return own + 3.0  # the other process contributes 3 everywhere

    torch.manual_seed(0)
    alone = nn.Sequential(nn.BatchNorm2d(3))
    together = copy.deepcopy(alone)
    batches = [torch.randn(5, 3, 6, 6)]
    average_statistics([alone], batches, ALONE, nullcontext())
    average_statistics([together], batches, Two(), nullcontext())
    torch.testing.assert_close(together[0].running_var, (alone[0].running_var + 3) / 2)
    torch.testing.assert_close(together[0].running_mean, (alone[0].running_mean + 3) / 2)


def test_statistics_are_recalibrated_after_epochs_without_growth_up_to_recalibrate_until(
    training, monkeypatch
):
    done, recalibrate = [], recalibration.recalibrate

    def noted(state, *rest):
        recalibrate(state, *rest)
        done.append(state.recalibrated)

    monkeypatch.setattr(recalibration, "recalibrate", noted)
    training(*EVERY, *GROWING).run()
    assert done == [1, 3]  # epoch 2 grows, and epoch 4 is after recalibrate_until
    done.clear()
    training(*EVERY, "method=plain", where="plain").run()
    assert done == [1, 2, 3, 4]


@pytest.mark.parametrize("when", ["during recalibration", "during validation", "later"])
def test_a_training_stopped_around_a_recalibration_resumes_to_the_same_bits(
    training, monkeypatch, when
):
    whole = training(*EVERY, *GROWING)
    whole.run()
    until = {"during recalibration": STEPS, "during validation": 10**9, "later": 2 * STEPS + 2}
    killed = training(*EVERY, *GROWING, until=until[when], where="killed")
    if when == "during validation":
        killed.context.stopping = lambda: killed.state.recalibrated == 1
    with pytest.raises(Interrupted):
        killed.run()
    resumed = training(*EVERY, *GROWING, where="killed")
    resumed.run()
    equal(whole, resumed)
    averages = [t.state.learner.state()["ema"].items() for t in (whole, resumed)]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(*averages, strict=True))


def test_a_budget_counts_recalibration(training):
    settings = (*EVERY, "method=plain", "train.budget.plain_epochs=4")
    result = training(*settings).run()
    assert result["plain_steps"] == pytest.approx(4 * STEPS, abs=1.5)
    # each epoch recalibrates two networks
    assert result["adjusting_steps"] == pytest.approx(4 * result["epochs"] / 3, abs=1e-3)
