"""Test `networks.trial`: an optimizer is tried on a tiny network, and an unusable one is refused."""

import pytest
import torch

from pipeline.display.errors import UserError
from pipeline.networks import optimizers, trial
from tests.pipeline.training.learning import checked

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("adanw2", "train.optimizer=adanw2 is not an optimizer of timm; did you mean"),
        ("adahessian", "train.optimizer=adahessian cannot be used here (RuntimeError"),
        ("adafactorbv", "cannot be resumed (TypeError: param_groups.0.momentum_dtype"),
        (
            "adamw train.optimizer_args={beta:1}",
            "adamw has no argument beta (train.optimizer_args); valid are",
        ),
        ("adamw train.optimizer_args={betas:[0.9,2.0]}", "Invalid beta parameter at index 1"),
    ],
)
def test_an_unusable_optimizer_is_refused_before_a_stage_runs(optimizer, words):
    config = checked(*f"method=dyrep train.lr=0.001 train.optimizer={optimizer}".split())
    with pytest.raises(UserError) as refused:
        trial.attempt(config.train, config.method)
    assert words in str(refused.value) and "\n" not in str(refused.value)


class Drawing(torch.optim.SGD):
    """An optimizer that draws a random number at each step."""

    def step(self, closure=None):
        torch.rand(1)
        return super().step(closure)


def test_an_optimizer_that_draws_numbers_is_refused(monkeypatch):
    monkeypatch.setattr(optimizers, "build", lambda model, _: Drawing(model.parameters(), lr=0.1))
    config = checked("method=plain")
    with pytest.raises(UserError, match="draws random numbers"):
        trial.attempt(config.train, config.method)


class Whole(torch.optim.SGD):
    """An optimizer with a list of its parameters that new branches do not join."""

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
