"""Test that a training on images of one channel grows, and resumes to the same bits."""

import pytest

import dyrep
from pipeline.display.errors import Interrupted
from tests.pipeline.training import learning
from tests.pipeline.training.learning import STEPS, equal

METHODS = {
    "dyrep": ("method=dyrep", "method.calibration_batches=2"),
    "linear": ("method=dyrep", "method.form=linear"),
    "grow": ("method=grow", "method.choose=random", "method.max_cost=3", "method.cost=flops"),
}
SHORT = ("data.channels=1", "method.adjust_interval=1", "method.last_adjust_epoch=2",
         "train.epochs=3", "train.deterministic=true", "train.warmup_epochs=0", "train.ema=0.9",
         "train.lr=0.01")  # fmt: skip


@pytest.fixture(autouse=True)
def grey(monkeypatch):
    coloured = learning.batch

    def batch(number=0, size=6):
        drawn = coloured(number, size)
        return drawn._replace(images=drawn.images[:, :1])

    monkeypatch.setattr(learning, "batch", batch)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_on_grey_images_grows_and_resumes_to_the_same_bits(training, method):
    settings = (*METHODS[method], *SHORT)
    whole = training(*settings)
    whole.run()
    with pytest.raises(Interrupted):
        training(*settings, until=STEPS + 3, where="killed").run()
    resumed = training(*settings, where="killed")
    assert resumed.state.step == STEPS + 3
    resumed.run()
    equal(whole, resumed)
    model = whole.state.learner.model
    assert dyrep.structure(model)["blocks"]
    assert next(model.parameters()).shape[1] == 1
