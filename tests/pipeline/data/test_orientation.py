"""Test that an image is stored upright, as its EXIF orientation says."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.prepare import pixels
from pipeline.data.prepare.examine import examine
from tests.pipeline.data.odd import KEEP
from tests.pipeline.data.preparing import encoded, picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_stored_upright(orientation):
    image = picture(3, 24, 30)
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = orientation
    data = encoded(image, "PNG", exif=exif.tobytes())
    good = examine("x.png", data, KEEP)
    stored = Image.open(io.BytesIO(good.data))
    turns = {
        1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
        5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: np.rot90,
    }  # fmt: skip
    assert np.array_equal(np.asarray(stored), turns[orientation](np.asarray(image)))
    assert stored.getexif().get(pixels.ORIENTATION, 1) == 1


def test_broken_exif_data_are_ignored():
    data = encoded(picture(3), exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert examine("x.jpg", data, KEEP).size == (24, 30)
