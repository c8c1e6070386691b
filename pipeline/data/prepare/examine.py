"""Examine one image: decide whether it is intact, and return the bytes to store.

Two decoders read each image, because each accepts images that the other does not: Pillow refuses
broken data streams that nvImageCodec (DALI's decoder) decodes to garbage, and DALI stops a training
at images that only Pillow can read. Stored images need no special treatment: they have 8 bits, are
grey or RGB, upright, and not animated.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config.data import MAX_ASPECT, MAX_PIXELS, Prep
from pipeline.data.prepare import jpeg, pixels
from pipeline.data.shards import MODES
from pipeline.data.sources.tree import EXTENSIONS

GRID = (72, 64)  # (columns, rows) of the pixels of an image that are hashed and counted
KEPT = {"JPEG": "jpg", "PNG": "png"}
MAX_LOST = 0.05  # largest share of rows that a truncated file may lack
GPU = Path("/dev/nvidia0")
Image.MAX_IMAGE_PIXELS = None  # this module checks the size before decoding
Image.init()
FORMATS = sorted(Image.OPEN.keys() - {"EPS"})  # EPS is a program that Ghostscript would run


class Bad(Exception):
    """An image cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Good:
    """An intact image.

    Args:
        data: the encoded bytes to store.
        extension: file extension of these bytes, `jpg` or `png`.
        size: (height, width) of the stored image, pixels.
        pixels: 64-bit hash of the size and of a grid of pixels, equal for copies in any format;
            `build.Stored.same` compares all pixels of images whose hashes are equal.
        looks: 64 bits of which few change when the picture changes a little (dHash); 0 for small
            pictures.
        histogram: (channels, 256) counts of values per channel on that grid.
        remark: an oddity of the file, or a change made to it; empty if there is none.
    """

    data: bytes
    extension: str
    size: tuple[int, int]
    pixels: int
    looks: int
    histogram: np.ndarray
    remark: str


def examine(name: str, data: bytes, prep: Prep, channels: int = 3) -> Good:
    """Decode an image completely, and return the form to store it in.

    Args:
        name: the name of the image.
        data: its encoded bytes.
        prep: the settings of the form.
        channels: 3 if the network sees RGB, 1 if it sees the luminance. An image that is stored
            byte for byte keeps its colours all the same.

    Raises:
        Bad: the image cannot be used.
    """
    if not data:
        raise Bad("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning is harmless, or a check below refuses the image
        image, kind, remarks = _decoded(data)
        if kind == "MPO":
            data, kind = jpeg.first_picture(data), "JPEG"
        remarks += _checked(data, kind, image)
        turned = pixels.upright(image)
        rgb, what = _rgb(turned, kind)
        seen = rgb.convert(MODES[channels])
        icc = pixels.profile(image.info.get("icc_profile"))
    if pixels.depth(data, kind) != 8:
        what = what or f"{data[24]}-bit"
    changed = turned is not image or bool(what) or kind not in KEPT
    shrunk = _shrunk(seen, prep.shrink)
    stored, extension = data, KEPT.get(kind, "png")
    if shrunk is not seen:
        stored, extension = _encoded(shrunk, "JPEG", quality=prep.quality, subsampling=0), "jpg"
    elif changed:
        stored, extension = _encoded(seen, "PNG"), "png"
    if stored is data:
        _check_other_decoder(data)
    grid = _grid(shrunk)
    histogram = np.array(grid.histogram()).reshape(channels, 256)
    remarks = _misnamed(name, kind) + remarks
    if changed:
        form = "RGB" if channels == 3 else "grey"
        remarks.append(f"{what}, encoded again as upright 8-bit {form}".removeprefix(", "))
    if channels == 1 and _has_colours(rgb):
        remarks.append("has colours, and the network sees its luminance")
    if icc:
        remarks.append(f"its colour profile, {icc}, is taken for sRGB")
    if np.count_nonzero(histogram) == channels:
        remarks.append("all of one colour")
    return Good(
        data=stored,
        extension=extension,
        size=(shrunk.height, shrunk.width),
        pixels=_fingerprint(shrunk.size, grid),
        looks=_looks(grid),
        histogram=histogram,
        remark=", ".join(remarks),
    )


def _decoded(data: bytes) -> tuple[Image.Image, str, list[str]]:
    """Return the picture, the format of its file, and remarks."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise Bad("no image that Pillow knows") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Bad(f"{width}x{height} pixels are more than {MAX_PIXELS // 10**6} million")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Bad(f"{width}x{height} is thinner than 1:{MAX_ASPECT}")
    try:
        frames = getattr(image, "n_frames", 1)
        if not pixels.single(image):
            kind = "pages" if image.format == "TIFF" else "frames"
            raise Bad(f"{'animated, ' * (kind == 'frames')}{frames} {kind}")
        image.load()
    except Bad:
        raise
    except Exception as error:  # Pillow raises many types of errors for damaged data
        raise Bad(f"cannot be decoded: {error}") from error
    return image, str(image.format), [f"the first of {frames} pictures in it"] * (frames > 1)


def _checked(data: bytes, kind: str, image: Image.Image) -> list[str]:
    try:
        return _losses(data, kind, image)
    except Bad:
        raise
    except Exception as error:  # e.g. a damaged part that Pillow did not read
        raise Bad(f"cannot be decoded: {error}") from error


def _losses(data: bytes, kind: str, image: Image.Image) -> list[str]:
    """Return a remark about missing parts of an image.

    Raises:
        Bad: too much is missing.
    """
    if pixels.is_cut(data, kind, image):
        raise Bad("cut off, and closed again")
    if kind != "JPEG":
        return []
    if jpeg.restarts_are_broken(data):
        raise Bad("restart markers are missing or out of order: a part of it is lost")
    rows = jpeg.rows_lost(data, image)
    remark = f"cut off: {rows} of {image.height} rows are missing"
    if rows > MAX_LOST * image.height:
        raise Bad(remark)
    if rows:
        return [remark]
    unfinished = "progressive" in image.info and jpeg.scans_missing(data)
    return ["cut off: scans are missing, it is coarse"] * unfinished


def _rgb(image: Image.Image, kind: str) -> tuple[Image.Image, str]:
    try:
        return pixels.rgb(image, kind)
    except pixels.Unusable as error:
        raise Bad(str(error)) from None


def _shrunk(image: Image.Image, side: int | None) -> Image.Image:
    short = min(image.size)
    if side is None or short <= side:
        return image
    size = (image.width * side // short, image.height * side // short)
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    image.info.clear()  # the old profile and transparency do not apply to the new file
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _grid(image: Image.Image) -> Image.Image:
    """Return a regular grid of pixels that represents a large image; a small image as it is."""
    large = image.width > GRID[0] and image.height > GRID[1]
    return image.resize(GRID, Image.Resampling.NEAREST) if large else image


def _has_colours(image: Image.Image) -> bool:
    red, green, blue = np.array(_grid(image).histogram()).reshape(3, 256)
    return bool((red != green).any() or (green != blue).any())


def _fingerprint(size: tuple[int, int], grid: Image.Image) -> int:
    digest = hashlib.sha256(f"{size[0]}x{size[1]}".encode() + grid.tobytes()).digest()
    return int.from_bytes(digest[:8], "big")


def _looks(grid: Image.Image) -> int:
    """Return a bit for each of 8x8 positions: whether the picture gets brighter to the right."""
    if grid.size != GRID:
        return 0
    values = np.asarray(grid.convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(values[:, 1:] > values[:, :-1]).tobytes(), "big")


def _misnamed(name: str, kind: str) -> list[str]:
    last = name.rpartition("/")[2]
    extension = last.rpartition(".")[2].lower() if "." in last else ""
    names = {"JPEG": {"jpg", "jpeg", "jpe", "jfif"}, "PNG": {"png"}, "TIFF": {"tif", "tiff"}}
    claimed = f".{extension}" in EXTENSIONS  # else the suffix says nothing of a format
    wrong = claimed and extension not in names.get(kind, {extension})
    return [f"is {kind}, not {extension}"] if wrong else []


@cache
def _other() -> Any:
    """Return a decoder of nvImageCodec, on the GPU if there is one; None if it is not installed."""
    try:
        from nvidia import nvimgcodec
    except ImportError:
        return None
    if GPU.exists():
        with suppress(RuntimeError):  # no GPU driver in this container
            return nvimgcodec.Decoder(device_id=0, max_num_cpu_threads=1)
    return nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
        backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)],
    )


def _check_other_decoder(data: bytes) -> None:
    """Decode the last pixel with nvImageCodec, too, which needs the whole file."""
    decoder = _other()
    if decoder is None:
        return
    from nvidia.nvimgcodec import CodeStream, Region

    try:
        stream = CodeStream(data)
        last = Region(stream.height - 1, stream.width - 1, stream.height, stream.width)
        decoded = decoder.decode(stream.get_sub_code_stream(region=last))
    except RuntimeError:  # nvImageCodec cannot read the header
        decoded = None
    if decoded is None:
        raise Bad("Pillow can decode it, nvImageCodec cannot")
