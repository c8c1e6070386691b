"""What people's folders really hold: each kind is stored right, or left out with its reason."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import Prep
from pipeline.data import check
from pipeline.data.check import Bad, examine
from tests.pipeline.preparing import Prepared, encoded, folder, picture

KEEP = Prep(shard_images=16, shrink=None, quality=92)
JPEG = encoded(picture(1, 200, 300), quality=92)


def flipped():
    """Return a JPEG whose stream is broken by one bit."""
    for place in range(len(JPEG) // 2, len(JPEG)):
        data = bytearray(JPEG)
        data[place] ^= 0x40
        try:
            Image.open(io.BytesIO(data)).load()
        except OSError:
            return bytes(data)
    raise AssertionError("no bit of it breaks the stream")


def bomb(width, height):
    """Return a small PNG that claims to be huge."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def animated():
    frames = [picture(seed).convert("P") for seed in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


REFUSED = {
    "zero-byte": (lambda: b"", "empty file"),
    "truncated": (lambda: JPEG[: len(JPEG) // 2], "truncated"),
    "without its last two bytes": (lambda: JPEG[:-2], "truncated"),
    "header only": (lambda: JPEG[:160], "no image|truncated|cannot be decoded"),
    "flipped bit": (flipped, "cannot be decoded"),
    "text": (lambda: b"these are no pixels\n" * 40, "no image"),
    "HTML": (lambda: b"<!doctype html><title>404</title>", "no image"),
    "random bytes": (lambda: np.random.default_rng(0).bytes(3000), "no image"),
    "1x5000": (lambda: encoded(picture(1, 1, 5000)), "thinner than 1:50"),
    "bomb": (lambda: bomb(30_000, 30_000), "30000x30000 pixels"),
    "animated GIF": (animated, "animated, 3 frames"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_with_its_reason(kind):
    make, reason = REFUSED[kind]
    with pytest.raises(Bad, match=reason):
        examine("x.jpg", make(), KEEP)


def alpha():
    image = picture(2).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


STORED = {
    "JPEG": (lambda: JPEG, None),
    "grey JPEG": (lambda: encoded(picture(2, mode="L")), None),
    "progressive JPEG": (lambda: encoded(picture(2), progressive=True), None),
    "PNG": (lambda: encoded(picture(2), "PNG"), None),
    "1x1": (lambda: encoded(picture(2, 1, 1), "PNG"), None),
    "PNG with alpha": (lambda: encoded(alpha(), "PNG"), "png"),
    "PNG with a palette": (lambda: encoded(picture(2).convert("P"), "PNG"), "png"),
    "CMYK JPEG": (lambda: encoded(picture(2, mode="CMYK")), "png"),
    "one frame of GIF": (lambda: encoded(picture(2).convert("P"), "GIF"), "png"),
    "WebP": (lambda: encoded(picture(2), "WEBP", lossless=True), "png"),
    "BMP": (lambda: encoded(picture(2), "BMP"), "png"),
    "AVIF": (lambda: encoded(picture(2), "AVIF"), "png"),
}


@pytest.mark.parametrize("kind", STORED)
def test_it_is_stored_so_that_every_decoder_sees_the_same(kind):
    make, anew = STORED[kind]
    data = make()
    good = examine("x", data, KEEP)
    assert (good.data == data) == (anew is None)
    if anew:
        assert good.extension == anew
        assert "stored anew" in good.remark
    stored = Image.open(io.BytesIO(good.data))
    assert stored.mode in ("L", "RGB") and stored.getexif().get(check.ORIENTATION, 1) == 1
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(stored.convert("RGB")), expected)
    assert good.size == expected.shape[:2]
    decoder = check._other()
    if decoder:
        other = np.array(decoder.decode(good.data))
        assert np.array_equal(np.broadcast_to(other, expected.shape), expected)


def test_sixteen_bits_are_scaled_not_cut():
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    good = examine("x.png", encoded(Image.fromarray(values), "PNG"), KEEP)
    stored = np.asarray(Image.open(io.BytesIO(good.data)))[..., 0]
    assert np.abs(stored - values / 257).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_stored_upright(orientation):
    image = picture(3, 24, 30)
    exif = Image.Exif()
    exif[check.ORIENTATION] = orientation
    data = encoded(image, "PNG", exif=exif.tobytes())
    good = examine("x.png", data, KEEP)
    stored = Image.open(io.BytesIO(good.data))
    turns = {
        1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
        5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: np.rot90,
    }  # fmt: skip
    assert np.array_equal(np.asarray(stored), turns[orientation](np.asarray(image)))
    assert stored.getexif().get(check.ORIENTATION, 1) == 1


def test_broken_exif_data_harm_nothing():
    data = encoded(picture(3), exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert examine("x.jpg", data, KEEP).size == (24, 30)


def test_a_name_that_lies_is_remarked():
    assert examine("x.jpg", encoded(picture(3), "PNG"), KEEP).remark == "is PNG, not jpg"


def test_copies_in_different_formats_are_the_same_picture():
    png = examine("x.png", encoded(picture(4), "PNG"), KEEP)
    bmp = examine("x.bmp", encoded(picture(4), "BMP"), KEEP)
    other = examine("x.png", encoded(picture(5), "PNG"), KEEP)
    assert png.pixels == bmp.pixels != other.pixels


@pytest.fixture
def images(tmp_path):
    return folder(tmp_path / "images")


def prepared(tmp_path, images, **changes):
    return Prepared(tmp_path / "o", name="imagefolder", root=str(images), max_bad=0.5, **changes)


def test_planted_damage_is_found_completely_and_nothing_else(tmp_path):
    images = folder(tmp_path / "images", images=40)
    planted = {}
    for number, (kind, (make, _)) in enumerate(REFUSED.items()):
        name = f"{'cat' if number % 2 else 'dog'}/{number:03d}.jpg"
        (images / name).write_bytes(make())
        planted[name] = kind
    made = prepared(tmp_path, images).run()
    assert made.quarantine().keys() == planted.keys()
    assert made.metrics["images"] == 80 - len(planted)


def test_a_file_that_disappears_meanwhile_is_left_out(tmp_path, images, monkeypatch):
    from pipeline.data.sources.folders import ImageFolder

    read = ImageFolder.read

    def vanishing(self, name):
        if name == "dog/002.jpg":
            (self.root / name).unlink(missing_ok=True)
        return read(self, name)

    monkeypatch.setattr(ImageFolder, "read", vanishing)
    made = prepared(tmp_path, images).run()
    assert made.quarantine() == {"dog/002.jpg": "cannot be read: No such file or directory"}


def test_names_that_are_long_or_no_utf8_are_no_trouble(tmp_path, images):
    odd = os.fsencode(images / "cat") + b"/\xff\xfe.jpg"
    with open(odd, "wb") as file:  # noqa: PTH123 (a Path cannot hold it)
        file.write(b"no image")
    (images / "cat" / f"{'n' * 240}.jpg").write_bytes(encoded(picture(9)))
    made = prepared(tmp_path, images).run()
    assert made.metrics["images"] == 17
    (name,) = made.quarantine()
    assert os.fsencode(name) == b"cat/\xff\xfe.jpg"
    assert "\\udcff" in (made.dir / "data.html").read_text()
