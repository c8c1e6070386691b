"""From any picture to upright 8-bit RGB, and what that did to it."""

from __future__ import annotations

import io
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps

ORIENTATION = 0x0112
REDUCED = 254  # tag of TIFF whose first bit marks a smaller copy of another page
PLAIN = ("L", "RGB")
WHOLE = ((0, 0, 1, 1),)  # passes of a PNG: first column and row, steps across and down
INTERLACED = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
    (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
DARK = 8192  # a 16-bit picture without larger values is nearly black
KNOWN = {
    "1": "1-bit", "P": "palette", "PA": "palette", "LA": "transparency", "RGBA": "transparency",
    "La": "transparency", "RGBa": "transparency", "RGBX": "RGBX", "CMYK": "CMYK",
    "YCbCr": "YCbCr", "HSV": "HSV",
}  # fmt: skip


class Unusable(Exception):
    """Pixels whose meaning is not known; says why."""


def single(image: Image.Image) -> bool:
    """Whether there is one picture: the others, if any, are smaller copies or other views of it."""
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
    """Return the image as a viewer would turn it; itself, if that is how it is stored."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF data says nothing
        return image
    if orientation not in range(2, 9):
        return image
    image.info.pop("exif", None)  # what else it holds may be broken
    turned = ImageOps.exif_transpose(image)
    return turned if turned is not None else image


def rgb(image: Image.Image, kind: str) -> tuple[Image.Image, str]:
    """Return 8-bit RGB and what it was before; transparency is dropped as torchvision drops it.

    Raises:
        Unusable: nothing says which values are black and white.
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
    """Return the bits per channel of a file that would be stored as it is."""
    return data[24] if kind == "PNG" else 8


def is_cut(data: bytes, kind: str, image: Image.Image) -> bool:
    """Whether a PNG has fewer rows than it says; Pillow leaves the others at 0."""
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
    """Return the bytes of one pass over a picture of (width, height), of `bits` per pixel."""
    left, top, across, down = which
    columns, rows = -(-(size[0] - left) // across), -(-(size[1] - top) // down)
    return rows * (1 + -(-columns * bits // 8)) if columns > 0 < rows else 0


def _inflated(data: bytes, most: int) -> int:
    """Return the bytes of pixels in a PNG, `most` if there are more: they may be without end."""
    packed, place = io.BytesIO(), 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed.write(data[place + 8 : place + 8 + size])
        place += size + 12
    return len(zlib.decompressobj().decompress(packed.getvalue(), most))


@lru_cache(256)
def profile(icc: bytes | None) -> str:
    """Return the name of a colour profile that is not sRGB, which is what all is taken for."""
    if not icc:
        return ""
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(icc))).strip()
    except Exception:  # damaged, or this Pillow has no LittleCMS
        return ""
    return "" if "srgb" in name.lower() else name
