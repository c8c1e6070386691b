"""Test that cutout is the published one, and that policies of timm depend on the seed alone."""

import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from pipeline.config import policy, without_added
from pipeline.data.loaders import memory
from pipeline.data.loaders.torch import ClippedCutout, TimmPolicy
from tests.pipeline.data.loaders.loading import NONE, augment, spec

pytestmark = pytest.mark.long


def published(side, length):
    """Return the masks of the authors' cutout for each centre (DeVries and Taylor, 2017).

    The shape is (side, side, side, side): centre y, centre x, row, column.
    """
    masks = np.zeros((side, side, side, side), bool)
    for y, x in itertools.product(range(side), repeat=2):
        ends = (np.clip([c - length // 2, c + length // 2], 0, side) for c in (y, x))
        rows, columns = (slice(*end) for end in ends)
        masks[y, x, rows, columns] = True
    return torch.from_numpy(masks)


def test_a_clipped_cutout_is_the_published_one():
    expected = published(16, 8).flatten(0, 1)
    # 0.25 if no mask crossed the border
    assert expected.float().mean() == pytest.approx(0.191, abs=1e-3)
    centres = torch.cartesian_prod(torch.arange(16), torch.arange(16)) / 16 + 0.01
    size = torch.full((256, 2), 8.0)
    assert torch.equal(memory._rectangle(16, centres, size, clip=True), expected)
    torch.manual_seed(0)
    cut, images = ClippedCutout(8), torch.ones(3, 16, 16)
    drawn = torch.stack([cut(images)[0] == 0 for _ in range(2000)])
    assert len(torch.unique(torch.cat([drawn, expected]), dim=0)) == 256
    assert drawn.float().mean() == pytest.approx(0.191, abs=0.01)


def test_later_settings_at_their_defaults_leave_old_positions_valid():
    assert without_added(augment().model_dump(), "train.augment.").keys() == NONE.keys()


@pytest.mark.parametrize(
    "text",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m6-n3-tweights",
        "augmix-m3-w2",
        "original-mstd0.5",
        "v0r",
        "3a",
    ],
)
def test_a_policy_of_timm_depends_on_the_seed_alone(data, text):
    change = TimmPolicy(text, spec(data, augment=augment(policy=text)))
    image = (torch.arange(3 * 24 * 24) % 251).view(3, 24, 24).to(torch.uint8)
    before = random.getstate(), np.random.get_state()[1].tolist()
    found = []
    for seed in (*range(8), *range(8)):
        torch.manual_seed(seed)
        found.append(change(image))
    assert all(map(torch.equal, found[:8], found[8:]))
    assert not all(torch.equal(image, one) for one in found)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_the_bounds_of_policies_are_those_of_timm():
    assert auto_augment._LEVEL_DENOM == policy.STRONGEST
    for weighted, operations in policy.WEIGHTED.items():
        assert len(auto_augment.rand_augment_choices(weighted.removeprefix("t"))) == operations


def test_posterizing_to_no_bits_keeps_one_bit(data):
    text = "rand-m9-mstd0.5-inc1"
    change = TimmPolicy(text, spec(data, augment=augment(policy=text)))
    (posterize,) = (op.aug_fn for op in change._change.ops if op.name == "PosterizeIncreasing")
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    assert posterize(image, 0).tobytes() == posterize(image, 1).tobytes()
    assert posterize(image, 8) is image
