"""Test the images that loaders yield: resized as by torchvision, and augmented as the recipe says."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torchvision.transforms import v2

from pipeline.config.train import Augment
from pipeline.data import preprocess
from pipeline.data.loaders import augmentation
from pipeline.data.loaders.choose import choose, make, named
from tests.launcher import PROJECT
from tests.pipeline.data.loaders.loading import KINDS, augment, spec

pytestmark = pytest.mark.long


@pytest.mark.parametrize("kind", ["dali", "torch"])
@pytest.mark.parametrize(("resize", "size"), [(64, 56), (41, 32), (33, 33)])
def test_evaluation_images_are_resized_as_by_torchvision(odd, kind, resize, size):
    folder, stored = odd
    theirs = v2.Compose([v2.Resize(resize), v2.CenterCrop(size)])
    own = spec(folder, "val", resize=resize, image_size=size)
    mean, std = (torch.tensor(v)[:, None, None] for v in (own.manifest.mean, own.manifest.std))
    differences = []
    for batch in make(kind, own):
        for image, number in zip(batch.images, batch.numbers.tolist(), strict=True):
            expected = torch.from_numpy(np.array(theirs(stored[number]))).movedim(2, 0)
            pixels = (image * std + mean) * 255
            difference = (pixels - expected).abs()
            if kind == "dali" and resize == size:  # DALI's filter repeats pixels at the border
                assert difference.max() <= 4
                difference = difference[:, 1:-1, 1:-1]
            differences.append(difference)
    assert len(differences) == 60
    assert max(d.max() for d in differences) <= 1.01
    assert torch.stack([d.mean() for d in differences]).mean() <= 0.2


def test_the_memory_loader_gives_the_images_of_the_torch_loader(data):
    ours, theirs = (
        torch.cat([batch.images for batch in make(kind, spec(data, "val", resize=30))])
        for kind in ("memory", "torch")
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_preprocess_json_prepares_an_image_as_the_evaluation_does(odd, tmp_path):
    folder, stored = odd
    own = spec(folder, "val", resize=41, image_size=32)
    described = preprocess.describe(SimpleNamespace(short_side=41, image_size=32), own.manifest)
    (tmp_path / "preprocess.json").write_text(json.dumps(described))
    transform = preprocess.load(tmp_path / "preprocess.json")
    for batch in make("torch", own):
        for image, number in zip(batch.images, batch.numbers.tolist(), strict=True):
            assert torch.allclose(
                transform(stored[number]), image, atol=1.5 / 255 / min(own.manifest.std)
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_mirrors_and_padding_shifts(data, kind):
    plain = {}
    for batch in make(kind, spec(data)):
        plain |= dict(zip(batch.numbers.tolist(), batch.images, strict=True))
    mirrored = 0
    for batch in make(kind, spec(data, augment=augment(flip=True))):
        for number, image in zip(batch.numbers.tolist(), batch.images, strict=True):
            if number in plain:
                is_plain = torch.allclose(image, plain[number], atol=1e-4)
                is_mirrored = torch.allclose(image, plain[number].flip(2), atol=1e-4)
                assert is_plain or is_mirrored
                mirrored += is_mirrored
    assert 20 < mirrored < 80
    moved = 0
    for batch in make(kind, spec(data, augment=augment(crop="pad", padding=2))):
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
def test_each_recipe_is_loaded_or_refused_by_each_loader(data, kind, recipe):
    asked = Augment(**yaml.safe_load(recipe.read_text())["augment"])
    own = spec(data, augment=asked)
    if named(kind).cannot(own) is None:
        for batch in make(kind, own):
            assert batch.images.shape == (8, 3, 24, 24) and batch.images.isfinite().all()
    else:
        assert choose("auto", own)[0].kind != kind


@pytest.mark.parametrize(("size", "scale"), [(24, (0.08, 1.0)), (8, (0.5, 1.0)), (40, (1.0, 1.0))])
def test_random_crops_of_a_batch_equal_those_of_torchvision(size, scale):
    """Both implementations use the same random numbers, and cut out the first of ten shapes that fits."""
    torch.manual_seed(0)
    height, width = 28, 36
    images = torch.randint(0, 256, (50, 3, height, width), dtype=torch.uint8)
    draws, asked = torch.rand(50, 22), augment(crop="resized", scale=list(scale))
    ours = augmentation.resized(images, draws, asked, size)
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
    ours = augmentation.twisted(images, *factors)
    assert (ours.int() - theirs.int()).abs().max() <= 2
    assert torch.equal(ours[0], images[0])


def test_jitter_stays_in_its_range_and_differs_between_images():
    images = torch.full((64, 3, 2, 2), 100, dtype=torch.uint8)
    changed = augmentation.jittered(images, torch.rand(64, 4), [0.2, 0.0, 0.0, 0.0])
    assert changed.min() >= 80 and changed.max() <= 120 and len(changed.unique()) > 20
