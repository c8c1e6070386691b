"""Test training steps on a CUDA device; without one, the tests are skipped."""

import pytest
import torch

import dyrep
from pipeline.contract.world import World
from pipeline.data.loaders.ahead import copied
from pipeline.data.loaders.base import LoaderSpec
from pipeline.training.history import History
from tests.pipeline.training import learning
from tests.pipeline.training.learning import batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def world(monkeypatch):
    """Return the world of a training with one process, on the CUDA device."""
    alone = World(rank=0, world_size=1, device=torch.device("cuda", 0), hang_timeout=60)
    monkeypatch.setattr(learning, "ALONE", alone)
    return alone


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_no_step_makes_the_host_wait_before_or_after_growth(tmp_path, world, precision):
    made = learning.learner("method=dyrep", f"train.precision={precision}", "train.ema=0.9")
    watched = dyrep.DyRep(made.model, made.optimizer, ema=made.ema)
    history = History(tmp_path / "history.jsonl", world, made._recipe, {})
    spec = LoaderSpec(
        folder=tmp_path, split="train", batch_size=6, image_size=8, resize=8, augment=None,
        device=world.device, layout=made.layout,
    )  # fmt: skip
    pinned = ([t.pin_memory() for t in batch(number)] for number in range(110))

    def steps(first, last, batches):
        for number in range(first, last):
            one = next(batches)
            history.batch_came()
            history.step(number, 1, made.update(one, watched.accumulate), made.lr)

    batches = copied(pinned, spec)
    for begin in (0, 55):
        steps(begin, begin + 5, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps(begin + 5, begin + 55, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        made.unwrap()
        watched.adjust([next(copied([batch()], spec)).images])
        made.wrap()
        made.train()
    history.flush()
    assert history.rows == 110
    assert made.model.training and dyrep.block.blocks(made.model)
