"""Test that each loader yields each image as often as it must, and resumes at exact positions."""

from dataclasses import replace

import pytest
import torch

from pipeline.data.loaders import base
from pipeline.data.loaders.choose import make
from pipeline.display.errors import UserError
from tests.pipeline.data.loaders.loading import KINDS, MUCH, augment, same, spec

pytestmark = pytest.mark.long


# -- how often an image comes ---------------------------------------------------------------------


@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_each_image_at_most_once_and_validation_each_once(data, kind, world_size):
    ranks = [
        make(kind, spec(data, batch_size=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    orders = []
    for _ in range(5):
        batches = [list(one) for one in ranks]
        assert len({len(own) for own in batches}) == 1
        assert len(batches[0]) == len(ranks[0]) == 103 // (4 * world_size)
        numbers = torch.cat([batch.numbers for own in batches for batch in own])
        assert len(numbers) == len(numbers.unique()) == len(ranks[0]) * 4 * world_size
        orders.append(numbers.tolist())
    assert len({tuple(order) for order in orders}) == 5
    evaluated = [
        [
            batch.numbers
            for batch in make(
                kind, spec(data, "val", rank=rank, world_size=world_size, batch_size=3)
            )
        ]
        for rank in range(world_size)
    ]
    # collectives need the same number of batches on each rank
    assert len({len(own) for own in evaluated}) == 1
    numbers = torch.cat([numbers for own in evaluated for numbers in own])
    assert sorted(numbers.tolist()) == list(range(103, 123))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_belong_to_their_images(data, kind):
    for batch in make(kind, spec(data)):
        # images are listed class by class: 35 of a, 34 of b, 34 of c
        expected = (batch.numbers >= 35).long() + (batch.numbers >= 69).long()
        assert torch.equal(batch.labels, expected)


# -- exact positions ------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_resumes_exactly_from_any_position(data, kind, world_size):
    def opened(rank, state=None):
        own = spec(data, rank=rank, world_size=world_size, augment=augment(**MUCH[kind]))
        return make(kind, own, state)

    for rank in range(world_size):
        whole, states, batches = opened(rank), [], []
        for _ in range(2):
            for batch in whole:
                batches.append(batch)
                states.append(whole.state())
        steps = len(whole)
        for taken in (1, steps // 2, steps - 1, steps, steps + 2):
            again = opened(rank, states[taken - 1])
            rest = [*again] if taken % steps else []
            rest += [*again] if taken < steps else [*again] if not rest else []
            assert len(rest) == 2 * steps - taken
            pairs = zip(rest, batches[taken:], strict=True)
            assert all(same(one, two) for one, two in pairs)
        assert not same(batches[0], batches[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_draws_nothing_from_the_global_generator_of_torch(data, kind):
    loader, before = make(kind, spec(data, augment=augment(**MUCH[kind]))), torch.get_rng_state()
    assert len(list(loader)) == len(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_of_another_loader_is_refused(data, tmp_path, kind):
    own = spec(data)
    opened = make(kind, own)
    next(iter(opened))
    state = opened.state()
    others = {
        "batch": replace(own, batch_size=4),
        "rank": replace(own, rank=1, world_size=2),
        "changes": replace(own, augment=augment(flip=True)),
        "size": replace(own, image_size=16),
    }
    for other in others.values():
        with pytest.raises(UserError, match="the position to go on from is not one of these"):
            make(kind, other, state)
    with pytest.raises(UserError, match="is not one of these"):
        make("torch" if kind != "torch" else "memory", own, state)
    with pytest.raises(UserError, match="is not one of these"):
        make(kind, own, state[:20] * 0)


@pytest.mark.parametrize("kind", ["memory", "torch"])
def test_augmentation_depends_only_on_seed_epoch_and_index(data, kind, monkeypatch):
    """The number of processes and of workers does not matter."""

    def images(world_size, cores, seed=5):
        monkeypatch.setattr(base, "cores", lambda: cores)
        found = {}
        for rank in range(world_size):
            own = spec(
                data, rank=rank, world_size=world_size, batch_size=24 // world_size, seed=seed,
                augment=augment(**{**MUCH[kind], "repeats": 1, "erase": 0.0}),
            )  # fmt: skip
            for batch in make(kind, own):
                found |= dict(zip(batch.numbers.tolist(), batch.images, strict=True))
        return found

    alone, several, other = images(1, 1), images(3, 4), images(1, 1, seed=6)
    assert alone.keys() == several.keys()
    assert all(torch.equal(alone[number], several[number]) for number in alone)
    shared = alone.keys() & other.keys()
    assert shared and not any(torch.equal(alone[number], other[number]) for number in shared)


def test_repeated_images_are_augmented_differently(data):
    own = spec(data, augment=augment(crop="resized", repeats=3))
    numbers, images = [], []
    for batch in make("torch", own):
        numbers += batch.numbers.tolist()
        images += list(batch.images)
    assert len(numbers) == 96
    assert numbers[0] == numbers[1] == numbers[2] != numbers[3]
    assert not torch.equal(images[0], images[1])
