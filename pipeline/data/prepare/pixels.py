"""Convert any picture to upright 8-bit RGB, and describe the conversion."""

from __future__ import annotations

import io
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps

ORIENTATION = 0x0112
REDUCED = 254  # TIFF tag whose first bit marks a page as a smaller copy of another
PLAIN = ("L", "RGB")
WHOLE = ((0, 0, 1, 1),)  # passes of a PNG: first column and row, steps across and down
INTERLACED = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
    (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
DARK = 8192  # a 16-bit picture whose values are all smaller is nearly black
KNOWN = {
    "1": "1-bit", "P": "palette", "PA": "palette", "LA": "transparency", "RGBA": "transparency",
    "La": "transparency", "RGBa": "transparency", "RGBX": "RGBX", "CMYK": "CMYK",
    "YCbCr": "YCbCr", "HSV": "HSV",
}  # fmt: skip


class Unusable(Exception):
    """The meaning of the pixels is unknown; the message says why."""


def single(image: Image.Image) -> bool:
    """Whether a file holds one picture, apart from smaller copies or other views of it."""
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format == "MPO":
        return True
    if image.format != "TIFF":
        return False
    reduced = 0
    for page in range(1, count):
        image.seek(page)
        reduced += image.tag_v2.get(REDUCED, 0) & 1  # type: ignore[attr-defined]
    image.seek(0)
    return reduced == count - 1


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated as a viewer shows it; the same object if it is stored so."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF data has no orientation
        return image
    if orientation not in range(2, 9):
        return image
    image.info.pop("exif", None)  # the rest of it may be broken
    turned = ImageOps.exif_transpose(image)
    return turned if turned is not None else image


def rgb(image: Image.Image, kind: str) -> tuple[Image.Image, str]:
    """Return an image as 8-bit RGB, and its earlier form in words, or "" if that was RGB or grey.

    Transparency is dropped as torchvision drops it.

    Raises:
        Unusable: it is unknown which values are black and white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.float64)
        scaled = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
        dark = f", largest value {values.max():.0f}: nearly black" if values.max() < DARK else ""
        return scaled.convert("RGB"), f"16-bit{dark}"
    if image.mode in ("I", "F"):
        what = "float" if image.mode == "F" else "32-bit or signed"
        raise Unusable(f"{what} pixels, whose range is not known; store it as 8 or 16 bits")
    if image.mode not in (*PLAIN, *KNOWN):
        raise Unusable(f"{image.mode} pixels; store it as RGB")
    what = "transparency" if "transparency" in image.info else KNOWN.get(image.mode, "")
    return image if image.mode == "RGB" else image.convert("RGB"), what


def depth(data: bytes, kind: str) -> int:
    """Return the bits per channel of a file, which is a PNG or has 8."""
    return data[24] if kind == "PNG" else 8


def is_cut(data: bytes, kind: str, image: Image.Image) -> bool:
    """Whether a PNG has fewer rows than its header says; Pillow leaves the missing rows at 0."""
    if kind != "PNG":
        return False
    passes = INTERLACED if data[28] else WHOLE
    last = image.crop((0, image.height - 1, image.width, image.height))
    if passes is WHOLE and np.asarray(last).any():
        return False
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[data[25]]
    whole = sum(_pass_bytes(image.size, channels * data[24], p) for p in passes)
    return _inflated(data, whole) < whole


def _pass_bytes(size: tuple[int, int], bits: int, which: tuple[int, int, int, int]) -> int:
    """Return the bytes of one pass over a picture of `size` (width, height), `bits` per pixel."""
    left, top, across, down = which
    columns, rows = -(-(size[0] - left) // across), -(-(size[1] - top) // down)
    return rows * (1 + -(-columns * bits // 8)) if columns > 0 < rows else 0


def _inflated(data: bytes, most: int) -> int:
    """Return the number of bytes of pixels in a PNG, at most `most`: a bomb has no end of them."""
    packed, offset = io.BytesIO(), 8
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 4])
        if data[offset + 4 : offset + 8] == b"IDAT":
            packed.write(data[offset + 8 : offset + 8 + size])
        offset += size + 12
    return len(zlib.decompressobj().decompress(packed.getvalue(), most))


@lru_cache(256)
def profile(icc: bytes | None) -> str:
    """Return the name of a colour profile other than sRGB; "" for sRGB, which is assumed."""
    if not icc:
        return ""
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(icc))).strip()
    except Exception:  # the profile is damaged, or this Pillow has no LittleCMS
        return ""
    return "" if "srgb" in name.lower() else name
