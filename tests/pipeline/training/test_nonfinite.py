"""Test `training.nonfinite`: steps are repeated to find where a loss that is not finite came from."""

import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD

from pipeline.contract.world import World
from pipeline.data.loaders.base import Batch
from pipeline.training import nonfinite
from pipeline.training.optim import Overflows

ALONE = World(rank=0, world_size=1, device=torch.device("cpu"), hang_timeout=60)


class Walk:
    """A network with nine batches, of which one may be NaN, and the calls that repeat its steps."""

    def __init__(self, poisoned: int | None) -> None:
        self.model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        self.left = self.taken = 0
        images = [torch.ones(1, 3, 2, 2) for _ in range(9)]
        if poisoned is not None:
            images[poisoned].fill_(math.nan)
        self.batches = (Batch(x, torch.zeros(1).long(), torch.zeros(1).long()) for x in images)

    def update(self, batch: Batch) -> torch.Tensor:
        self.taken += 1
        return self.model(batch.images).sum()

    def check_stop(self) -> None:
        self.left += 1


@pytest.mark.parametrize(
    ("poisoned", "step", "taken", "words"),
    [
        (2, 43, 3, ("step 43: the loss is not finite; the images of the batch", "from step 40")),
        (0, 43, 1, ("step 41: the loss is not finite; the images of the batch", "from step 40")),
        (None, 43, 3, ("step 43: the loss was not finite, and was when", "from step 40")),
        (
            3,
            43,
            3,
            ("step 43: the loss was not finite, and was when",),
        ),  # its NaN comes after the last repeated step
    ],
)
def test_the_repetition_ends_at_the_first_loss_that_is_not_finite(poisoned, step, taken, words):
    walk = Walk(poisoned)
    message = str(
        nonfinite.explain(
            walk.model, walk.batches, walk.update, ALONE, walk.check_stop, range(41, step + 1)
        )
    )
    assert all(word in message for word in words)
    assert walk.taken == walk.left == taken


def test_a_weight_that_is_not_finite_is_named():
    walk = Walk(None)
    with torch.no_grad():
        walk.model[0].weight.fill_(math.inf)
    message = nonfinite.explain(
        walk.model, walk.batches, walk.update, ALONE, walk.check_stop, range(1, 3)
    )
    assert "step 1: the loss is not finite; the weight of 0 is not finite" in str(message)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_loss_scaler_skips_are_counted(fused):
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1, fused=fused)
    scaler, overflows = GradScaler("cpu", init_scale=4.0), Overflows(optimizer)
    for finite in (False, True, False, True, True):
        scaler.scale(model(torch.ones(1, 2)).sum() * (1 if finite else math.inf)).backward()
        overflows.ask()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert overflows.now == 2
    taken_up = Overflows(SGD(model.parameters()))
    taken_up.load_state(overflows.state())
    for counts in (overflows, taken_up):
        counts.end_epoch()
        assert (counts.now, counts.total) == (0, 2)


@pytest.mark.parametrize(
    ("overflowed", "steps", "fails"),
    [(1, 22, False), (15, 16, False), (20, 22, False), (21, 22, True), (40, 100, False)],
)
def test_a_training_that_is_always_beyond_float16_fails(overflowed, steps, fails):
    if fails:
        with pytest.raises(nonfinite.Diverged, match=r"beyond float16 at any scale .*bfloat16"):
            nonfinite.judge(0, overflowed, steps, 3)
        return
    (line,) = nonfinite.judge(0, overflowed, steps, 3)
    assert line.startswith(f"epoch 3: {overflowed} of {steps} steps skipped, gradients beyond")
