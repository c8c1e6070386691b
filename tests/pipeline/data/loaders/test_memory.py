"""Test `loaders.memory`: the loader that keeps a split in memory."""

import pytest

from pipeline.data.loaders import memory
from pipeline.data.loaders.base import decoded
from pipeline.data.loaders.choose import make
from tests.pipeline.data.loaders.loading import MUCH, augment, spec
from tests.pipeline.training.test_steps import Reads

pytestmark = pytest.mark.long


def test_pixels_are_decoded_once_for_all_loaders_of_a_split(data, monkeypatch):
    memory._held.cache_clear()
    count = []
    monkeypatch.setattr(memory, "decoded", lambda *raw: count.append(1) or decoded(*raw))
    for seed in (1, 2, 3):
        list(make("memory", spec(data, augment=augment(), seed=seed)))
        list(make("memory", spec(data, "val")))
    assert len(count) == 103 + 20


def test_a_batch_from_memory_reads_nothing_from_the_device(data):
    everything = {**MUCH["memory"], "crop": "resized"}
    batches = iter(make("memory", spec(data, augment=augment(**everything))))
    next(batches)
    with Reads() as counter:
        next(batches)
    assert counter.count == 0
