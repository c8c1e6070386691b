"""Make image files that are cut off, broken, huge, or of rare formats."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

from pipeline.config.data import Prep
from tests.pipeline.data.preparing import encoded, picture

KEEP = Prep(shard_images=16, shrink=None, quality=92)


JPEG = encoded(picture(1, 200, 300), quality=92)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def flipped():
    """Return a JPEG with one flipped bit that makes it impossible to decode."""
    for place in range(len(JPEG) // 2, len(JPEG)):
        data = bytearray(JPEG)
        data[place] ^= 0x40
        try:
            Image.open(io.BytesIO(data)).load()
        except OSError:
            return bytes(data)
    raise AssertionError("no flipped bit of this JPEG makes it impossible to decode")


def bomb(width, height):
    """Return a small PNG that claims to be huge."""
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


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(depth, colour, pixels, *extra, height=None):
    """Return a PNG of raw rows, whose header may claim a larger height."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 30, height or len(pixels), depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def interlaced(height=21, width=30, lost=0):
    """Return an interlaced PNG without the last `lost` bytes of its rows, but with its end marker."""
    values = np.asarray(picture(1, height, width))
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in PASSES for row in values[y::dy, x::dx] if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    packed = zlib.compress(rows[: len(rows) - lost])
    parts = [(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def cut(share=0.4, **options):
    """Return the first share of a JPEG, followed by an end marker."""
    data = encoded(picture(1, 200, 300, options.pop("mode", "RGB")), quality=92, **options)
    start = data.index(b"\xff\xda")
    return data[: start + int(share * (len(data) - start))].removesuffix(b"\xff") + b"\xff\xd9"


def without_a_middle():
    data = encoded(picture(1, 200, 300), quality=92, restart_marker_blocks=8)
    return data[: len(data) // 2] + data[len(data) // 2 + 900 :]


def zeros_in_the_middle():
    data = bytearray(encoded(picture(1, 200, 300), quality=92, restart_marker_blocks=8))
    data[len(data) // 2 : len(data) // 2 + 900] = bytes(900)
    return bytes(data)


def pages(kind, **options):
    return encoded(
        picture(1), kind, save_all=True, append_images=[picture(2), picture(3)], **options
    )


def values(kind):
    return np.linspace(0, 1, 600).reshape(20, 30).astype(kind)


def alpha():
    image = picture(2).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image
