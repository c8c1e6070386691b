"""Find in the bytes of a JPEG where its first picture ends, and whether a part of it is lost.

A decoder fills missing parts with mid-grey, and reports them not at all or only in a log. So it
accepts files that were cut off and then ended properly. This module detects them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

SOI, EOI, SOS, DRI, APP2 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE2
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers that begin the description of a frame
ALONE = {0x01, SOI, *range(0xD0, 0xD8)}  # markers without a length
SCAN_END = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
RESTARTS = re.compile(rb"\xff([\xd0-\xd7])")
SEVERAL = b"MPF\0"  # first bytes of the segment that lists further pictures of the file
FILL = bytes(np.random.default_rng(0).integers(0, 255, 2048, dtype=np.uint8))  # has no marker


class Segment(NamedTuple):
    """A segment of the file: its marker, its begin and its end; a scan includes its data."""

    marker: int
    begin: int
    end: int


def segments(data: bytes, scans: bool = True) -> Iterator[Segment]:
    """Yield the segments of the first picture, to its end or to the first missing marker.

    Without `scans`, yield only the short segments before the first scan.
    """
    offset = 0
    while data[offset : offset + 1] == b"\xff":
        while data[offset + 1 : offset + 2] == b"\xff":  # this byte may be repeated
            offset += 1
        begin, offset = offset, offset + 2
        marker = data[offset - 1] if offset <= len(data) else EOI
        if marker not in ALONE and marker != EOI:
            offset += int.from_bytes(data[offset : offset + 2])
        if marker == SOS and not scans:
            return
        if marker == SOS:
            found = SCAN_END.search(data, offset)
            offset = found.start() if found else len(data)
        yield Segment(marker, begin, offset)
        if marker == EOI:
            return


def first_picture(data: bytes) -> bytes:
    """Return the bytes of the first picture, unchanged, of a file with several (MPO)."""
    kept = [
        data[segment.begin : segment.end]
        for segment in segments(data)
        if segment.marker != APP2 or not data.startswith(SEVERAL, segment.begin + 4)
    ]
    return b"".join(kept)


def rows_lost(data: bytes, image: Image.Image) -> int:
    """Return the number of last rows that are missing in the file.

    A decoder makes missing pixels mid-grey. If the last pixel is mid-grey, random data is inserted
    before the end and the picture is decoded again: it changes only if the decoder had run out of
    data.
    """
    last = image.getpixel((image.width - 1, image.height - 1))
    if not {*(last if isinstance(last, tuple) else [last])} <= {127, 128}:
        return 0
    scans = [segment for segment in segments(data) if segment.marker == SOS]
    end = scans[-1].end if scans else len(data)
    filled = Image.open(io.BytesIO(data[:end] + FILL + data[end:]))
    filled.load()
    different = np.asarray(filled) != np.asarray(image)
    rows = np.flatnonzero(different.reshape(image.height, -1).any(1))
    return image.height - int(rows[0]) if len(rows) else 0


def restarts_are_broken(data: bytes) -> bool:
    """Whether restart markers are missing or out of order, so that data between them is lost."""
    if not any(segment.marker == DRI for segment in segments(data, scans=False)):
        return False
    known = list(segments(data))
    scans = [segment for segment in known if segment.marker == SOS]
    found = [RESTARTS.findall(data, segment.begin, segment.end) for segment in scans]
    for markers in found:
        if any(marker[0] != 0xD0 + count % 8 for count, marker in enumerate(markers)):
            return True
    interval = next((_number(data, p.begin + 4) for p in known if p.marker == DRI), 0)
    frame = next((segment for segment in known if segment.marker in FRAMES), None)
    if not interval or len(scans) != 1 or frame is None:
        return False
    return len(found[0]) < -(-_units(data, frame) // interval) - 1


def _units(data: bytes, frame: Segment) -> int:
    """Return the number of minimum coded units (MCU) of a scan of all components."""
    height, width = _number(data, frame.begin + 5), _number(data, frame.begin + 7)
    factors = data[frame.begin + 11 : frame.end : 3]
    across = 8 * max((f >> 4 for f in factors), default=1) if len(factors) > 1 else 8
    down = 8 * max((f & 15 for f in factors), default=1) if len(factors) > 1 else 8
    return -(-width // across) * -(-height // down)


def scans_missing(data: bytes) -> bool:
    """Whether a progressive file ends before the scans that give its pixels all their bits."""
    bits: dict[tuple[int, int], int] = {}
    for segment in segments(data):
        if segment.marker == SOS:
            count = data[segment.begin + 4]
            end = segment.begin + 5 + 2 * count
            first, last, left = data[end : end + 3]
            for component in data[segment.begin + 5 : end : 2]:
                bits |= {(component, n): left & 15 for n in range(first, last + 1)}
    components = {component for component, _ in bits}
    return any(bits.get((component, n), 1) for component in components for n in range(64))


def _number(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2])
