"""Test `prepare.examine`: each kind of image is stored correctly, or left out with the reason."""

import contextlib
import io
import os
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torchvision.io import decode_image

from pipeline.data.prepare import examine as check
from pipeline.data.prepare import pixels
from pipeline.data.prepare.examine import Bad, examine
from tests.pipeline.data.odd import (
    JPEG,
    KEEP,
    PROFILE,
    alpha,
    animated,
    bomb,
    cut,
    flipped,
    interlaced,
    pages,
    png,
    values,
    without_a_middle,
    zeros_in_the_middle,
)
from tests.pipeline.data.preparing import Prepared, encoded, folder, picture

REFUSED = {
    "cut off, closed": (cut, "cut off: .* of 200 rows are missing"),
    "most of it cut off": (lambda: cut(0.05), "cut off: .* of 200 rows"),
    "cut off, grey": (lambda: cut(mode="L"), "cut off: .* of 200 rows"),
    "cut off, CMYK": (lambda: cut(mode="CMYK"), "cut off: .* of 200 rows"),
    "cut off, full chroma": (lambda: cut(subsampling=0), "cut off: .* of 200 rows"),
    "cut off, restarts": (lambda: cut(restart_marker_blocks=8), "restart markers"),
    "its middle gone": (without_a_middle, "restart markers are missing or out of order"),
    "zeros in its middle": (zeros_in_the_middle, "restart markers are missing or out of order"),
    "PNG cut off, closed": (
        lambda: png(8, 0, np.full((9, 30), 7, np.uint8), height=20),
        "cut off, and closed",
    ),
    "interlaced PNG cut off in its last pass": (
        lambda: interlaced(lost=2 * 91),
        "cut off, and closed",
    ),
    "interlaced PNG cut off in the one before": (
        lambda: interlaced(lost=10 * 91 + 2 * 46),
        "cut off, and closed",
    ),
    "GIF cut off, closed": (
        lambda: encoded(picture(1).convert("P"), "GIF")[:900] + b"\0;",
        "truncated",
    ),
    "float TIFF": (lambda: encoded(Image.fromarray(values(np.float32)), "TIFF"), "float pixels"),
    "32-bit TIFF": (
        lambda: encoded(Image.fromarray((values(float) * 2**30).astype(np.int32)), "TIFF"),
        "32-bit or signed",
    ),
    "LAB": (
        lambda: encoded(Image.merge("LAB", picture(1).split()), "TIFF"),
        "LAB pixels; store it as RGB",
    ),
    "APNG": (lambda: pages("PNG"), "animated, 3 frames"),
    "animated WebP": (lambda: pages("WEBP"), "animated, 3 frames"),
    "pages of TIFF": (lambda: pages("TIFF"), "3 pages"),
    "zero-byte": (lambda: b"", "empty file"),
    "truncated": (lambda: JPEG[: len(JPEG) // 2], "truncated"),
    "without its last two bytes": (lambda: JPEG[:-2], "truncated"),
    "header only": (lambda: JPEG[:160], "no image|truncated|cannot be decoded"),
    "flipped bit": (flipped, "cannot be decoded"),
    "text": (lambda: b"these are no pixels\n" * 40, "no image"),
    "HTML": (lambda: b"<!doctype html><title>404</title>", "no image"),
    "EPS, a program": (lambda: encoded(picture(1), "EPS"), "no image"),
    "random bytes": (lambda: np.random.default_rng(0).bytes(3000), "no image"),
    "1x5000": (lambda: encoded(picture(1, 1, 5000)), "thinner than 1:50"),
    "bomb": (lambda: bomb(30_000, 30_000), "30000x30000 pixels"),
    "animated GIF": (animated, "animated, 3 frames"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_image_is_refused_with_its_reason(kind):
    make, reason = REFUSED[kind]
    with pytest.raises(Bad, match=reason):
        examine("x.jpg", make(), KEEP)


STORED = {
    "JPEG": (lambda: JPEG, None),
    "grey JPEG": (lambda: encoded(picture(2, mode="L")), None),
    "progressive JPEG": (lambda: encoded(picture(2), progressive=True), None),
    "PNG": (lambda: encoded(picture(2), "PNG"), None),
    "1x1": (lambda: encoded(picture(2, 1, 1), "PNG"), None),
    "interlaced": (interlaced, None),
    "interlaced, of few columns": (lambda: interlaced(5, 3), None),
    "interlaced, of one pixel": (lambda: interlaced(1, 1), None),
    "PNG with alpha": (lambda: encoded(alpha(), "PNG"), "png"),
    "PNG with a palette": (lambda: encoded(picture(2).convert("P"), "PNG"), "png"),
    "CMYK JPEG": (lambda: encoded(picture(2, mode="CMYK")), "png"),
    "one frame of GIF": (lambda: encoded(picture(2).convert("P"), "GIF"), "png"),
    "WebP": (lambda: encoded(picture(2), "WEBP", lossless=True), "png"),
    "BMP": (lambda: encoded(picture(2), "BMP"), "png"),
    "AVIF": (lambda: encoded(picture(2), "AVIF"), "png"),
    "16-bit RGB": (lambda: png(16, 2, np.arange(1800).reshape(20, 90).astype(">u2") * 36), "png"),
    "16-bit grey and alpha": (lambda: png(16, 4, np.arange(1200).reshape(20, 60).astype(">u2") * 54), "png"),
    "4-bit grey": (lambda: png(4, 0, np.arange(300).reshape(20, 15).astype(np.uint8)), "png"),
    "1-bit": (lambda: encoded(picture(2).convert("1"), "PNG"), "png"),
    "a transparent colour": (lambda: png(8, 2, np.arange(1800).reshape(20, 90).astype(np.uint8), (b"tRNS", bytes(6))), "png"),
    "a transparent grey": (lambda: png(8, 0, np.arange(600).reshape(20, 30).astype(np.uint8), (b"tRNS", bytes(2))), "png"),
    "a transparent entry of a palette": (lambda: encoded(picture(2).convert("P"), "PNG", transparency=3), "png"),
    "CMYK TIFF": (lambda: encoded(picture(2, mode="CMYK"), "TIFF"), "png"),
    "all rows black": (lambda: png(8, 0, np.zeros((20, 30), np.uint8)), None),
    "a grey end": (lambda: encoded(Image.new("RGB", (300, 200), (128, 128, 128))), None),
}  # fmt: skip


def test_the_first_picture_of_an_mpo_photograph_is_stored_bit_for_bit():
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}):
        data = pages("MPO", quality=90, **options)
        good = examine("x.jpg", data, KEEP)
        assert good.extension == "jpg" and good.remark == "the first of 3 pictures in it"
        stored, first = Image.open(io.BytesIO(good.data)), Image.open(io.BytesIO(data))
        assert stored.format == "JPEG" and len(good.data) < len(data)
        assert np.array_equal(np.asarray(stored), np.asarray(first))
        theirs = decode_image(torch.frombuffer(bytearray(good.data), dtype=torch.uint8))
        assert np.array_equal(theirs.movedim(0, 2).numpy(), np.asarray(first))
        if check._other():
            assert np.array_equal(np.array(check._other().decode(good.data)), np.asarray(first))


def test_a_page_of_tiff_with_a_smaller_copy_is_one_picture():
    frames = [picture(1), picture(1, 12, 15)]
    frames[1].encoderinfo = {"tiffinfo": {pixels.REDUCED: 1}}
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    good = examine("x.tif", data, KEEP)
    assert good.remark.startswith("the first of 2 pictures in it")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(good.data))), np.asarray(frames[0]))


def test_a_random_file_is_either_accepted_or_refused(monkeypatch):
    monkeypatch.setattr(check, "_check_other_decoder", lambda data: None)
    chance = random.Random(0)
    kinds = [cut(), cut(0.97), without_a_middle(), pages("MPO"), encoded(picture(1), progressive=True),
             encoded(picture(1), restart_marker_blocks=3), encoded(picture(1), "PNG")]  # fmt: skip
    for _ in range(600):
        data = bytearray(chance.choice(kinds))
        for _ in range(3):
            data[chance.randrange(min(700, len(data)))] = chance.choice([0, 0xDA, 0xD9, 0xDD, 0xFF])
        data = data[: chance.randrange(len(data))] + chance.choice([b"\xff\xd9", b"\xff\xda", b""])
        with contextlib.suppress(Bad):
            examine("x", bytes(data), KEEP)


REMARKED = {
    "the last rows cut off": (lambda: cut(0.97), r"cut off: \d+ of 200 rows are missing"),
    "progressive, cut off": (lambda: cut(0.7, progressive=True), "cut off: scans are missing, it is coarse"),
    "12 of 16 bits": (lambda: encoded(Image.fromarray((values(float) * 4095).astype(np.uint16)), "PNG"), "16-bit, largest value 4095: nearly black"),
    "a colour profile": (lambda: encoded(picture(1), icc_profile=PROFILE), "its colour profile, .*XYZ.*, is taken for sRGB"),
    "one colour": (lambda: encoded(Image.new("RGB", (30, 20), "white"), "PNG"), "all of one colour"),
    "CMYK": (lambda: encoded(picture(2, mode="CMYK")), "CMYK, encoded again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REMARKED)
def test_an_odd_image_is_kept_with_a_remark(kind):
    make, remark = REMARKED[kind]
    assert re.search(remark, examine("x", make(), KEEP).remark)


def test_an_srgb_profile_causes_no_remark():
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": 0}):
        for size in ((24, 30), (65, 129), (200, 300)):
            assert (
                examine(
                    "x.jpg", encoded(picture(1, *size), icc_profile=icc, **options), KEEP
                ).remark
                == ""
            )


@pytest.mark.parametrize("kind", STORED)
def test_an_image_is_stored_so_that_each_decoder_gives_the_same_pixels(kind):
    make, anew = STORED[kind]
    data = make()
    good = examine("x", data, KEEP)
    assert (good.data == data) == (anew is None)
    if anew:
        assert good.extension == anew
        assert "encoded again" in good.remark
    stored = Image.open(io.BytesIO(good.data))
    assert stored.mode in ("L", "RGB") and stored.getexif().get(pixels.ORIENTATION, 1) == 1
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(stored.convert("RGB")), expected)
    assert good.size == expected.shape[:2]
    decoder = check._other()
    if decoder:
        other = np.array(decoder.decode(good.data))
        assert np.array_equal(np.broadcast_to(other, expected.shape), expected)


def test_a_png_with_endless_data_is_read_only_to_its_last_row():
    rows = np.zeros((9, 30), np.uint8)
    data = png(8, 0, np.zeros((10**6, 30), np.uint8), height=9)
    assert pixels._inflated(data, 9 * 31) == 9 * 31
    stored = np.asarray(Image.open(io.BytesIO(examine("x.png", data, KEEP).data)))
    assert np.array_equal(stored, rows)


def test_sixteen_bits_are_scaled_and_not_truncated():
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    good = examine("x.png", encoded(Image.fromarray(values), "PNG"), KEEP)
    stored = np.asarray(Image.open(io.BytesIO(good.data)))[..., 0]
    assert np.abs(stored - values / 257).max() <= 0.5


def test_a_wrong_file_ending_causes_a_remark():
    assert examine("x.jpg", encoded(picture(3), "PNG"), KEEP).remark == "is PNG, not jpg"


def test_an_ending_of_no_image_format_causes_no_remark():
    assert not examine("x.npy", encoded(picture(3), "PNG"), KEEP).remark


def test_copies_in_different_formats_have_the_same_hash():
    png = examine("x.png", encoded(picture(4), "PNG"), KEEP)
    bmp = examine("x.bmp", encoded(picture(4), "BMP"), KEEP)
    other = examine("x.png", encoded(picture(5), "PNG"), KEEP)
    assert png.pixels == bmp.pixels != other.pixels


@pytest.fixture
def images(tmp_path):
    return folder(tmp_path / "images")


def prepared(tmp_path, images, **changes):
    return Prepared(tmp_path / "o", name="imagefolder", root=str(images), max_bad=0.5, **changes)


def test_prep_leaves_out_exactly_the_damaged_images(tmp_path):
    images = folder(tmp_path / "images", images=40)
    planted = {}
    for number, (kind, (make, _)) in enumerate(REFUSED.items()):
        name = f"{'cat' if number % 2 else 'dog'}/{number:03d}.jpg"
        (images / name).write_bytes(make())
        planted[name] = kind
    made = prepared(tmp_path, images).run()
    assert made.quarantine().keys() == planted.keys()
    assert made.metrics["images"] == 80 - len(planted)


def test_a_file_that_disappears_during_prep_is_left_out(tmp_path, images, monkeypatch):
    from pipeline.data.sources.folders import ImageFolder

    read = ImageFolder.read

    def vanishing(self, name):
        if name == "dog/002.jpg":
            (self.root / name).unlink(missing_ok=True)
        return read(self, name)

    monkeypatch.setattr(ImageFolder, "read", vanishing)
    made = prepared(tmp_path, images).run()
    assert made.quarantine() == {"dog/002.jpg": "cannot be read: No such file or directory"}


def test_long_names_and_names_that_are_not_utf8_are_accepted(tmp_path, images):
    odd = os.fsencode(images / "cat") + b"/\xff\xfe.jpg"
    with open(odd, "wb") as file:  # noqa: PTH123 (a Path cannot hold this name)
        file.write(b"no image")
    (images / "cat" / f"{'n' * 240}.jpg").write_bytes(encoded(picture(9)))
    made = prepared(tmp_path, images).run()
    assert made.metrics["images"] == 17
    (name,) = made.quarantine()
    assert os.fsencode(name) == b"cat/\xff\xfe.jpg"
    assert "\\udcff" in (made.dir / "data.html").read_text()
