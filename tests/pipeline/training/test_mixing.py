"""Test `training.mixing`: mixup, cutmix, and images that get larger over the epochs."""

import pytest
import torch

from pipeline.data.loaders.base import Batch
from pipeline.training.mixing import Mixing
from tests.pipeline.data.loaders.loading import augment

pytestmark = pytest.mark.long


class Recipe:
    def __init__(self, epochs=5, **changes):
        self.epochs, self.augment = epochs, augment(**changes)


def test_mixed_labels_are_the_shares_of_the_mixed_images():
    batch = Batch(
        torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16), torch.arange(4), None
    )
    for kind in ("mixup", "cutmix"):
        torch.manual_seed(0)
        images, labels, _ = Mixing(Recipe(**{kind: 1.0}), 4, 16)(batch, 0)
        assert torch.allclose(labels.sum(1), torch.ones(4))
        assert torch.allclose(images.mean((1, 2, 3)), labels @ torch.arange(4.0), atol=1e-5)


def test_images_grow_to_full_size_over_the_epochs():
    mixing = Mixing(Recipe(progressive=16), 4, 32)
    sides = [mixing.side(epoch) for epoch in range(5)]
    assert sides == [16, 24, 24, 32, 32] or sides == sorted(sides)
    assert sides[0] == 16 and sides[-1] == 32
    images, labels, _ = mixing(Batch(torch.rand(2, 3, 32, 32), torch.arange(2), None), 0)
    assert images.shape == (2, 3, 16, 16) and labels.dtype == torch.int64
