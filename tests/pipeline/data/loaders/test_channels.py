"""Test `data.channels=1`: each loader gives grey images, and the luminance of coloured ones."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import preprocess
from pipeline.data.loaders import augmentation
from pipeline.data.loaders.choose import make, named
from tests.pipeline.data.loaders.loading import KINDS, MUCH, augment, spec
from tests.pipeline.data.preparing import Prepared, encoded, picture

pytestmark = pytest.mark.long

SIDE = 24
CHANGES = {
    "pad": {"crop": "pad", "padding": 3, "flip": True},
    "resized": {"crop": "resized", "rotate": 10.0, "translate": 0.1},
    "jitter": {"jitter": [0.2, 0.2, 0.2, 0.1]},
    "erase": {"erase": 1.0, "cutout": 5},
    "clipped": {"cutout": 5, "cutout_clip": True},
    **{text: {"policy": text} for text in (
        "randaugment", "autoaugment", "trivialaugment", "rand-m9-mstd0.5-inc1", "rand-m6-n3-t3aw",
        "augmix-m3-w2", "original-mstd0.5", "v0r", "3a",
    )},
}  # fmt: skip


@pytest.fixture(scope="module", params=["RGB", "L"])
def prepared(request, tmp_path_factory):
    """Return the mode of 50 images (RGB or L), prepared once for one channel and once for three."""
    root = tmp_path_factory.mktemp("channels")
    for number in range(50):
        folder = root / "images" / ("train" if number < 40 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        content = encoded(picture(number, SIDE, SIDE, request.param), "PNG")
        (folder / f"{number:02d}.png").write_bytes(content)

    def of(channels):
        source = {"name": "imagefolder", "root": str(root / "images"), "val_fraction": None}
        return Prepared(root / str(channels), channels=channels, **source).run()

    return request.param, of(1), of(3)


def seen(made, kind):
    """Return the images of the validation split as pixels from 0 to 255, by number."""
    own = spec(made.folder, "val", batch_size=4)
    mean, std = (torch.tensor(v)[:, None, None] for v in (own.manifest.mean, own.manifest.std))
    return {
        number: (image * std + mean) * 255
        for images, _, numbers in make(kind, own)
        for number, image in zip(numbers.tolist(), images, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_each_loader_gives_the_luminance_of_an_image_in_one_channel(prepared, kind):
    mode, one, three = prepared
    stored = {n: Image.open(io.BytesIO(data)) for n, (data, _, _) in one.stored("val").items()}
    assert {image.mode for image in stored.values()} == {
        mode
    }  # the stored bytes are those of the files
    found = seen(one, kind)
    for number, image in found.items():
        expected = torch.from_numpy(np.array(stored[number].convert("L")))[None].float()
        assert image.shape == (1, SIDE, SIDE)
        assert (image - expected).abs().max() <= (1.01 if kind == "dali" else 0.01)
    if mode == "L":
        thrice = seen(three, kind)
        assert all(
            torch.allclose(thrice[n], image.expand(3, -1, -1), atol=0.01)
            for n, image in found.items()
        )


def test_mean_and_deviation_are_those_of_the_luminance(prepared):
    _, one, three = prepared
    pixels = np.stack(
        [
            np.array(Image.open(io.BytesIO(d)).convert("L"))
            for d, _, _ in one.stored("train").values()
        ]
    )
    assert one.manifest.mean == pytest.approx([pixels.mean() / 255], abs=1e-5)
    assert one.manifest.std == pytest.approx([pixels.std() / 255], abs=1e-5)
    assert (one.manifest.channels, three.manifest.channels) == (1, 3)


def test_prep_remarks_on_images_whose_colours_are_not_used(prepared):
    mode, one, three = prepared
    assert not three.remarks()
    assert set(one.remarks().values()) == (
        {"has colours, and the network sees its luminance"} if mode == "RGB" else set()
    )
    assert one.metrics["odd_files"] == (50 if mode == "RGB" else 0)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_augmentation_works_with_one_channel(prepared, kind, change):
    asked = augment(**CHANGES[change])
    own, other = (spec(made.folder, augment=asked) for made in prepared[1:])
    assert named(kind).cannot(own) == named(kind).cannot(other)
    if named(kind).cannot(own):
        return
    batches = list(make(kind, own))
    assert all(b.images.shape == (8, 1, SIDE, SIDE) and b.images.isfinite().all() for b in batches)
    plain = torch.cat([batch.images for batch in make(kind, spec(prepared[1].folder))])
    assert not torch.allclose(torch.cat([batch.images for batch in batches]), plain, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_one_channel_is_augmented_like_three_equal_channels(prepared, kind):
    """Grey images are compared; DALI draws other random numbers if a change has no effect on them."""
    mode, one, three = prepared
    if mode == "RGB":
        pytest.skip("luminance is computed before the change, so rounding differs")
    without = {"erase": 0.0, "policy": None} | ({"jitter": [0.0] * 4} if kind == "dali" else {})
    asked = augment(**(MUCH[kind] | without))
    ours, theirs = (list(make(kind, spec(made.folder, augment=asked))) for made in (one, three))
    for own, other in zip(ours, theirs, strict=True):
        far = (own.images - other.images).abs().amax((1, 2, 3)) * one.manifest.std[0] * 255
        assert far.max() <= 2.01


def test_hue_and_saturation_leave_grey_images_as_they_are():
    images = torch.randint(0, 256, (6, 1, 5, 5), dtype=torch.uint8)
    draws = torch.rand(6, 4)
    thrice = augmentation.jittered(images.expand(-1, 3, -1, -1), draws, [0.3, 0.3, 0.4, 0.2])
    ours = augmentation.jittered(images, draws, [0.3, 0.3, 0.4, 0.2])
    assert (ours.int() - thrice.int()).abs().max() <= 1
    assert torch.equal(augmentation.jittered(images, draws, [0.0, 0.0, 0.4, 0.2]), images)


def test_brightness_and_contrast_of_grey_images_are_changed_as_dali_changes_them():
    dali = pytest.importorskip("nvidia.dali")
    fn, pipeline_def = dali.fn, dali.pipeline_def
    images = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    brightness, contrast = torch.tensor([1.0, 1.2, 0.8, 1.1]), torch.tensor([1.0, 0.7, 1.3, 0.9])

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def graph():
        image, bright, far = fn.external_source(
            source=lambda: [list(images.permute(0, 2, 3, 1).contiguous().numpy()),
                            list(brightness.numpy()), list(contrast.numpy())],
            num_outputs=3, batch=True,
        )  # fmt: skip
        return fn.brightness_contrast(image, brightness=bright, contrast=far)

    (theirs,) = graph().run()
    theirs = torch.from_numpy(theirs.as_array()).permute(0, 3, 1, 2)
    ours = augmentation.twisted(images, brightness, contrast, torch.ones(4), torch.zeros(4))
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_images_has_the_shape_of_the_others(prepared, kind):
    """The last step of a validation split may have no image for some processes."""
    for rank in range(8):
        own = spec(prepared[1].folder, "val", batch_size=1, rank=rank, world_size=8)
        batches = list(make(kind, own))
        assert all(batch.images.shape[1:] == (1, SIDE, SIDE) for batch in batches)
        assert [len(batch.images) for batch in batches] == [1, int(rank < 2)]


def test_preprocess_json_prepares_coloured_and_grey_images(prepared, tmp_path):
    _, one, _ = prepared
    described = preprocess.describe(SimpleNamespace(short_side=SIDE, image_size=SIDE), one.manifest)
    assert (described["colour"], len(described["mean"])) == ("L", 1)
    (tmp_path / "preprocess.json").write_text(json.dumps(described))
    transform = preprocess.load(tmp_path / "preprocess.json")
    for images, _, numbers in make("torch", spec(one.folder, "val")):
        for image, number in zip(images, numbers.tolist(), strict=True):
            picture = Image.open(io.BytesIO(one.stored("val")[number][0]))
            assert torch.allclose(transform(picture), image, atol=1e-5)


def test_a_re_encoded_image_is_stored_grey(tmp_path):
    for number in range(8):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(picture(number, mode="RGBA"), "PNG"))
        shown = picture(number + 100, 60, 80)
        (folder / f"{number}.jpg").write_bytes(encoded(shown, quality=95))
    made = Prepared(
        tmp_path / "o", name="imagefolder", root=str(tmp_path / "images"), channels=1, shrink=32
    ).run()
    images = [Image.open(io.BytesIO(data)) for data, _, _ in made.stored("train").values()]
    assert {(image.format, image.mode) for image in images} == {("PNG", "L"), ("JPEG", "L")}
    assert any("encoded again as upright 8-bit grey" in text for text in made.remarks().values())


def test_a_grey_copy_of_a_coloured_image_is_a_leak_only_with_one_channel(tmp_path):
    images = {"train/a/0": picture(0), "train/b/1": picture(1), "train/b/2": picture(2),
              "val/a/3": picture(3), "val/b/4": picture(1, mode="L")}  # fmt: skip
    for name, image in images.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / f"{name}.png").write_bytes(encoded(image, "PNG"))
    source = {"name": "imagefolder", "root": str(tmp_path / "images"), "val_fraction": None}
    leaks = {
        channels: Prepared(tmp_path / str(channels), channels=channels, **source).run().quarantine()
        for channels in (1, 3)
    }
    assert leaks == {1: {"train/b/1.png": "is also a validation image: val/b/4.png"}, 3: {}}
