"""Every loader: each image as often as it must come, exactly resumable, and seen as torchvision sees it."""

import io
import itertools
import json
import math
import os
import random
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pipeline.config import asked
from pipeline.config.train import Augment
from pipeline.data import preprocess
from pipeline.data.loaders import base, memory, parts, workers
from pipeline.data.loaders import choose as choosing
from pipeline.data.loaders.base import Batch, Part, decoded
from pipeline.data.loaders.choose import choose, kinds, make
from pipeline.data.loaders.torch import ClippedCutout, TimmPolicy
from pipeline.errors import Interrupted, UserError
from pipeline.training.mixing import Mixing
from tests.launcher import PROJECT
from tests.pipeline.data.preparing import Prepared, encoded, picture
from tests.pipeline.training.test_steps import Reads

pytestmark = pytest.mark.long

NONE = {
    "crop": "none", "scale": [0.08, 1.0], "ratio": [0.75, 1.333], "padding": 0, "rotate": 0.0,
    "translate": 0.0, "flip": False, "jitter": [0.0] * 4, "policy": None, "erase": 0.0, "cutout": 0,
    "mixup": 0.0, "cutmix": 0.0, "repeats": 1, "progressive": None,
}  # fmt: skip
KINDS = ("dali", "memory", "torch")
MUCH = {
    "dali": {"crop": "resized", "flip": True, "rotate": 10.0, "jitter": [0.2, 0.2, 0.2, 0.1]},
    "memory": {"crop": "pad", "padding": 3, "jitter": [0.2, 0.2, 0.2, 0.1], "flip": True, "rotate": 10.0, "translate": 0.1,
               "erase": 0.5, "cutout": 5},
    "torch": {"crop": "resized", "flip": True, "policy": "rand-m9-mstd0.5-inc1", "erase": 0.5,
              "cutout": 5, "cutout_clip": True, "repeats": 2},
}  # fmt: skip


def augment(**changes):
    return Augment(**{**NONE, **changes})


@pytest.fixture(scope="module", autouse=True)
def two_cores():
    """Two workers per loader, wherever this runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "cores", lambda: 2)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return 103 training and 20 validation images of one size, in shards of 25."""
    root = tmp_path_factory.mktemp("data")
    images = root / "images"
    for split, count in (("train", 103), ("val", 20)):
        for number in range(count):
            folder = images / split / "abc"[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            seed = number if split == "train" else 1000 + number
            path = folder / f"{number:03d}.png"
            path.write_bytes(encoded(picture(seed, 28, 36), "PNG"))
    made = Prepared(
        root / "o", name="imagefolder", root=str(images), val_fraction=None, shard_images=25
    )
    return made.run().folder


def part(data, split="train", **changes):
    plain = {"batch_size": 8, "image_size": 24, "resize": 24, "augment": augment(), "seed": 5}
    if split == "val":
        plain["augment"] = None
    return Part(folder=data, split=split, **{**plain, **changes})


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# -- each image as often as it must come ----------------------------------------------------------


@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_each_image_at_most_once_and_validation_each_once(data, kind, world_size):
    ranks = [
        make(kind, part(data, batch_size=4, rank=rank, world_size=world_size))
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
                kind, part(data, "val", rank=rank, world_size=world_size, batch_size=3)
            )
        ]
        for rank in range(world_size)
    ]
    assert len({len(own) for own in evaluated}) == 1  # collectives need as many everywhere
    numbers = torch.cat([numbers for own in evaluated for numbers in own])
    assert sorted(numbers.tolist()) == list(range(103, 123))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_belong_to_their_images(data, kind):
    for batch in make(kind, part(data)):
        # images are listed class by class: 35 of a, 34 of b, 34 of c
        expected = (batch.numbers >= 35).long() + (batch.numbers >= 69).long()
        assert torch.equal(batch.labels, expected)


# -- exact positions ------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_exactly_from_anywhere(data, kind, world_size):
    def opened(rank, state=None):
        own = part(data, rank=rank, world_size=world_size, augment=augment(**MUCH[kind]))
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
def test_a_position_of_anything_else_is_refused(data, tmp_path, kind):
    own = part(data)
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
def test_changes_depend_on_seed_epoch_and_place_alone(data, kind, monkeypatch):
    """Not on the number of processes or workers."""

    def images(world_size, cores, seed=5):
        monkeypatch.setattr(base, "cores", lambda: cores)
        found = {}
        for rank in range(world_size):
            own = part(
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


def test_repeated_images_differ_each_time(data):
    own = part(data, augment=augment(crop="resized", repeats=3))
    numbers, images = [], []
    for batch in make("torch", own):
        numbers += batch.numbers.tolist()
        images += list(batch.images)
    assert len(numbers) == 96
    assert numbers[0] == numbers[1] == numbers[2] != numbers[3]
    assert not torch.equal(images[0], images[1])


# -- what is seen ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Return validation images of odd sizes and modes, and as Pillow shows them."""
    root = tmp_path_factory.mktemp("odd")
    random = np.random.default_rng(0)
    modes = ["RGB", "L", "P", "CMYK", "RGBA"]
    for number in range(60):
        height, width = random.integers(20, 120, 2)
        image = picture(number, int(height), int(width), modes[number % 5])
        kind = "PNG" if modes[number % 5] in ("P", "RGBA") else "JPEG"
        for split in ("train", "val"):
            folder = root / "images" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            if split == "val" or number < 2:
                shown = image if split == "val" else picture(5000 + number)
                data = encoded(shown, kind)
                (folder / f"{number:03d}.{kind.lower()}").write_bytes(data)
    made = Prepared(
        root / "o", name="imagefolder", root=str(root / "images"), val_fraction=None
    ).run()
    stored = {
        n: Image.open(io.BytesIO(d)).convert("RGB") for n, (d, _, _) in made.stored("val").items()
    }
    return made.folder, stored


@pytest.mark.parametrize("kind", ["dali", "torch"])
@pytest.mark.parametrize(("resize", "size"), [(64, 56), (41, 32), (33, 33)])
def test_an_evaluation_sees_what_torchvision_shows(odd, kind, resize, size):
    folder, stored = odd
    theirs = v2.Compose([v2.Resize(resize), v2.CenterCrop(size)])
    own = part(folder, "val", resize=resize, image_size=size)
    mean, std = (torch.tensor(v)[:, None, None] for v in (own.manifest.mean, own.manifest.std))
    differences = []
    for batch in make(kind, own):
        for image, number in zip(batch.images, batch.numbers.tolist(), strict=True):
            expected = torch.from_numpy(np.array(theirs(stored[number]))).movedim(2, 0)
            pixels = (image * std + mean) * 255
            difference = (pixels - expected).abs()
            if kind == "dali" and resize == size:  # at the border its filter repeats pixels
                assert difference.max() <= 4
                difference = difference[:, 1:-1, 1:-1]
            differences.append(difference)
    assert len(differences) == 60
    assert max(d.max() for d in differences) <= 1.01
    assert torch.stack([d.mean() for d in differences]).mean() <= 0.2


def test_the_memory_loader_sees_the_same(data):
    ours, theirs = (
        torch.cat([batch.images for batch in make(kind, part(data, "val", resize=30))])
        for kind in ("memory", "torch")
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_what_travels_with_the_network_prepares_an_image_as_the_evaluation_did(odd, tmp_path):
    folder, stored = odd
    own = part(folder, "val", resize=41, image_size=32)
    told = preprocess.describe(SimpleNamespace(short_side=41, image_size=32), own.manifest)
    (tmp_path / "preprocess.json").write_text(json.dumps(told))
    transform = preprocess.load(tmp_path / "preprocess.json")
    for batch in make("torch", own):
        for image, number in zip(batch.images, batch.numbers.tolist(), strict=True):
            assert torch.allclose(
                transform(stored[number]), image, atol=1.5 / 255 / min(own.manifest.std)
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_mirrors_and_padding_shifts(data, kind):
    plain = {}
    for batch in make(kind, part(data)):
        plain |= dict(zip(batch.numbers.tolist(), batch.images, strict=True))
    mirrored = 0
    for batch in make(kind, part(data, augment=augment(flip=True))):
        for number, image in zip(batch.numbers.tolist(), batch.images, strict=True):
            if number in plain:
                is_plain = torch.allclose(image, plain[number], atol=1e-4)
                is_mirrored = torch.allclose(image, plain[number].flip(2), atol=1e-4)
                assert is_plain or is_mirrored
                mirrored += is_mirrored
    assert 20 < mirrored < 80
    moved = 0
    for batch in make(kind, part(data, augment=augment(crop="pad", padding=2))):
        for number, image in zip(batch.numbers.tolist(), batch.images, strict=True):
            if number in plain:
                found = [
                    (dy, dx)
                    for dy in range(-2, 3)
                    for dx in range(-2, 3)
                    if torch.allclose(
                        image[:, 2 - dy : 22 - dy, 2 - dx : 22 - dx],
                        plain[number][:, 2:22, 2:22],
                        atol=1e-4,
                    )
                ]
                assert found
                moved += found[0] != (0, 0)
    assert moved > 60


@pytest.mark.parametrize("recipe", sorted((PROJECT / "conf" / "train").glob("*.yaml")))
@pytest.mark.parametrize("kind", KINDS)
def test_every_recipe_can_be_read_or_is_refused(data, kind, recipe):
    asked = Augment(**yaml.safe_load(recipe.read_text())["augment"])
    own = part(data, augment=asked)
    if kinds()[kind].cannot(own) is None:
        for batch in make(kind, own):
            assert batch.images.shape == (8, 3, 24, 24) and batch.images.isfinite().all()
    else:
        assert choose("auto", own)[0].kind != kind


@pytest.mark.parametrize(("size", "scale"), [(24, (0.08, 1.0)), (8, (0.5, 1.0)), (40, (1.0, 1.0))])
def test_parts_of_a_batch_are_those_torchvision_would_cut_out(size, scale):
    """The same draws, image by image: of ten areas and shapes the first that fits."""
    torch.manual_seed(0)
    height, width = 28, 36
    images = torch.randint(0, 256, (50, 3, height, width), dtype=torch.uint8)
    draws, asked = torch.rand(50, 22), augment(crop="resized", scale=list(scale))
    ours = parts.resized(images, draws, asked, size)
    low, high = (math.log(r) for r in asked.ratio)
    for image, draw, got in zip(images, draws.tolist(), ours, strict=True):
        for area, shape in zip(draw[:10], draw[10:20], strict=True):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
            ratio = math.exp(low + (high - low) * shape)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(draw[20] * (height - h + 1)), int(draw[21] * (width - w + 1))
                break
        else:
            h, w = height, min(width, round(height * asked.ratio[1]))
            top, left = 0, (width - w) // 2
        theirs = v2.functional.resized_crop(
            image.float(), top, left, h, w, [size, size], antialias=True
        )
        assert (got - theirs).abs().max() <= 0.51


def test_colours_of_a_batch_are_changed_as_dali_changes_them():
    dali = pytest.importorskip("nvidia.dali")
    fn, pipeline_def = dali.fn, dali.pipeline_def
    images = torch.randint(0, 256, (5, 3, 6, 6), dtype=torch.uint8)
    factors = [torch.tensor(values) for values in (
        [1.0, 1.2, 0.8, 1.1, 1.0], [1.0, 0.7, 1.3, 0.9, 1.0], [1.0, 1.4, 0.0, 1.1, 1.0],
        [0.0, 0.3, 1.0, -0.5, 2.0],
    )]  # fmt: skip

    @pipeline_def(batch_size=5, num_threads=1, device_id=None)
    def graph():
        image, *scales = fn.external_source(
            source=lambda: [list(images.permute(0, 2, 3, 1).contiguous().numpy()),
                            *(list(f.numpy()) for f in factors)],
            num_outputs=5, batch=True,
        )  # fmt: skip
        names = ("brightness", "contrast", "saturation", "hue")
        turned = [*scales[:3], scales[3] * 180 / math.pi]
        return fn.color_twist(image, **dict(zip(names, turned, strict=True)))

    (theirs,) = graph().run()
    theirs = torch.from_numpy(theirs.as_array()).permute(0, 3, 1, 2)
    ours = parts.twisted(images, *factors)
    assert (ours.int() - theirs.int()).abs().max() <= 2
    assert torch.equal(ours[0], images[0])


def test_jitter_stays_in_its_range_and_differs_between_images():
    images = torch.full((64, 3, 2, 2), 100, dtype=torch.uint8)
    changed = parts.jittered(images, torch.rand(64, 4), [0.2, 0.0, 0.0, 0.0])
    assert changed.min() >= 80 and changed.max() <= 120 and len(changed.unique()) > 20


def test_pixels_are_decoded_once_for_all_loaders_of_a_split(data, monkeypatch):
    memory._held.cache_clear()
    count = []
    monkeypatch.setattr(memory, "decoded", lambda raw: count.append(1) or decoded(raw))
    for seed in (1, 2, 3):
        list(make("memory", part(data, augment=augment(), seed=seed)))
        list(make("memory", part(data, "val")))
    assert len(count) == 103 + 20


def test_a_batch_from_memory_reads_nothing_from_the_device(data):
    everything = {**MUCH["memory"], "crop": "resized"}
    batches = iter(make("memory", part(data, augment=augment(**everything))))
    next(batches)
    with Reads() as counter:
        next(batches)
    assert counter.count == 0


# -- as published, and as timm does ---------------------------------------------------------------


def published(side, length):
    """Return the squares of the authors' cutout, for every centre (DeVries and Taylor, 2017)."""
    masks = np.zeros((side, side, side, side), bool)
    for y, x in itertools.product(range(side), repeat=2):
        ends = (np.clip([c - length // 2, c + length // 2], 0, side) for c in (y, x))
        rows, columns = (slice(*end) for end in ends)
        masks[y, x, rows, columns] = True
    return torch.from_numpy(masks)


def test_a_clipped_cutout_is_the_published_one():
    expected = published(16, 8).flatten(0, 1)
    assert expected.float().mean() == pytest.approx(0.191, abs=1e-3)  # 0.25 if all were inside
    centres = torch.cartesian_prod(torch.arange(16), torch.arange(16)) / 16 + 0.01
    size = torch.full((256, 2), 8.0)
    assert torch.equal(memory._rectangle(16, centres, size, clip=True), expected)
    torch.manual_seed(0)
    cut, images = ClippedCutout(8), torch.ones(3, 16, 16)
    drawn = torch.stack([cut(images)[0] == 0 for _ in range(2000)])
    assert len(torch.unique(torch.cat([drawn, expected]), dim=0)) == 256
    assert drawn.float().mean() == pytest.approx(0.191, abs=0.01)


def test_what_came_later_leaves_old_positions_valid():
    assert asked(augment().model_dump(), "train.augment.").keys() == NONE.keys()


@pytest.mark.parametrize(
    "policy",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m6-n3-tweights",
        "augmix-m3-w2",
        "original-mstd0.5",
        "v0r",
        "3a",
    ],
)
def test_a_policy_of_timm_follows_from_the_seed_alone(data, policy):
    change = TimmPolicy(policy, part(data, augment=augment(policy=policy)))
    image = (torch.arange(3 * 24 * 24) % 251).view(3, 24, 24).to(torch.uint8)
    before = random.getstate(), np.random.get_state()[1].tolist()
    found = []
    for seed in (*range(8), *range(8)):
        torch.manual_seed(seed)
        found.append(change(image))
    assert all(map(torch.equal, found[:8], found[8:]))
    assert not all(torch.equal(image, one) for one in found)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


# -- the choice -----------------------------------------------------------------------------------


def test_auto_takes_what_suits_and_says_why(data, odd, monkeypatch):
    def chosen(own):
        kind, why = choose("auto", own)
        return kind.kind, why

    assert chosen(part(data))[0] == "memory"
    kind, why = chosen(part(odd[0], "val"))
    assert kind == "dali" and "memory needs images of one size" in why
    kind, why = chosen(part(data, augment=augment(policy="randaugment")))
    assert kind == "torch" and "dali has no policy=randaugment" in why
    monkeypatch.setattr(choosing, "IN_MEMORY", 1000)
    assert "memory would need" in chosen(part(data))[1]
    monkeypatch.setattr(choosing, "find_spec", lambda name: None)
    assert chosen(part(data))[0] == "torch"
    with pytest.raises(UserError, match=r"data.loader=dali is not installed"):
        choose("dali", part(data))


def test_what_a_loader_cannot_do_is_refused_with_one_that_can(data):
    with pytest.raises(UserError, match=r"data.loader=dali has no policy=autoaugment; .*=torch"):
        make("dali", part(data, augment=augment(policy="autoaugment")))
    with pytest.raises(UserError, match=r"memory has no policy=randaugment; use data.loader=torch"):
        make("memory", part(data, augment=augment(policy="randaugment")))


def test_auto_goes_on_with_the_loader_that_a_state_is_of(data):
    own = part(data, augment=augment(crop="resized"))
    assert make("auto", own).kind == "memory"
    for kind in KINDS:
        assert make("auto", own, make(kind, own).state()).kind == kind
    with pytest.raises(UserError, match="position to go on from is not one of these"):
        make("auto", own, make("torch", replace(own, batch_size=4)).state())


# -- worker processes on a machine as it is --------------------------------------------------------


class Items(Dataset):
    """What a worker may meet with."""

    def __init__(self, what):
        self.what = what

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return self.what() if self.what else torch.zeros(2)


def dies(number):
    return lambda: os.kill(os.getpid(), number)


def no_room():
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")


def working(what, waiting=lambda seconds: None):
    return workers.batches(
        DataLoader(Items(what), num_workers=1, timeout=1, multiprocessing_context="fork"), waiting
    )


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (dies(signal.SIGKILL), "a worker process of data.loader=torch ended: .*Killed"),
        (dies(signal.SIGBUS), "/dev/shm is full"),
        (no_room, "/dev/shm is full, a batch did not fit in; .*--shm-size"),
    ],
)
def test_the_end_of_a_worker_is_told_with_its_reason(what, words):
    with pytest.raises(UserError, match=words) as error:
        list(working(what))
    assert "\n" not in str(error.value)


def test_who_waits_for_a_batch_hears_that_it_is_to_leave():
    def leave(seconds):
        raise Interrupted(f"{seconds:.0f}")

    with pytest.raises(Interrupted):
        list(working(lambda: time.sleep(60), leave))


def test_a_batch_that_comes_late_is_waited_for():
    looks = []
    late = working(lambda: time.sleep(1.2) or torch.zeros(2), looks.append)
    assert next(late).shape == (1, 2) and looks


@pytest.mark.parametrize(("free", "expected"), [(10**9, 4), (3 * 10**7, 4), (10**7, 3), (0, 0)])
def test_no_more_workers_are_started_than_the_shared_memory_has_room_for(
    monkeypatch, capsys, free, expected
):
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    workers._say.cache_clear()
    for _ in range(2):
        assert workers.affordable(4, 10**6, neighbours=1) == expected
    told = capsys.readouterr().out
    assert told.count("\n") == (expected < 4)
    assert (f"{expected} are used" in told) == (expected < 4)
    assert workers.affordable(4, 10**6, neighbours=8) <= expected


def test_without_room_the_batches_are_the_same(data, monkeypatch):
    own = part(data)
    enough = list(make("torch", own))
    monkeypatch.setattr(workers, "SHARED", workers.Path("/nowhere"))
    assert all(same(one, two) for one, two in zip(enough, make("torch", own), strict=True))


# -- whole batches --------------------------------------------------------------------------------


class Recipe:
    def __init__(self, epochs=5, **changes):
        self.epochs, self.augment = epochs, augment(**changes)


def test_mixed_labels_say_how_much_of_each():
    batch = Batch(
        torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16), torch.arange(4), None
    )
    for kind in ("mixup", "cutmix"):
        torch.manual_seed(0)
        images, labels, _ = Mixing(Recipe(**{kind: 1.0}), 4, 16)(batch, 0)
        assert torch.allclose(labels.sum(1), torch.ones(4))
        assert torch.allclose(images.mean((1, 2, 3)), labels @ torch.arange(4.0), atol=1e-5)


def test_sides_grow_to_full_size():
    mixing = Mixing(Recipe(progressive=16), 4, 32)
    sides = [mixing.side(epoch) for epoch in range(5)]
    assert sides == [16, 24, 24, 32, 32] or sides == sorted(sides)
    assert sides[0] == 16 and sides[-1] == 32
    images, labels, _ = mixing(Batch(torch.rand(2, 3, 32, 32), torch.arange(2), None), 0)
    assert images.shape == (2, 3, 16, 16) and labels.dtype == torch.int64
