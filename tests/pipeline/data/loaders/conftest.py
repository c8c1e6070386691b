"""Provide prepared images for the tests of the loaders."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.loaders import base
from tests.pipeline.data.preparing import Prepared, encoded, picture


@pytest.fixture(scope="module", autouse=True)
def two_cores():
    """Give each loader two workers, however many cores the machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "cores", lambda: 2)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Return 103 training and 20 validation images of one size, in shards of 25."""
    root = tmp_path_factory.mktemp("data")
    images = root / "images"
    for split, count in (("train", 103), ("val", 20)):
        for number in range(count):
            folder = images / split / "abc"[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            seed = number if split == "train" else 1000 + number
            path = folder / f"{number:03d}.png"
            path.write_bytes(encoded(picture(seed, 28, 36), "PNG"))
    made = Prepared(
        root / "o", name="imagefolder", root=str(images), val_fraction=None, shard_images=25
    )
    return made.run().folder


@pytest.fixture(scope="session")
def odd(tmp_path_factory):
    """Return a folder with validation images of odd sizes and modes, and Pillow's RGB image of each."""
    root = tmp_path_factory.mktemp("odd")
    random = np.random.default_rng(0)
    modes = ["RGB", "L", "P", "CMYK", "RGBA"]
    for number in range(60):
        height, width = random.integers(20, 120, 2)
        image = picture(number, int(height), int(width), modes[number % 5])
        kind = "PNG" if modes[number % 5] in ("P", "RGBA") else "JPEG"
        for split in ("train", "val"):
            folder = root / "images" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            if split == "val" or number < 2:
                shown = image if split == "val" else picture(5000 + number)
                data = encoded(shown, kind)
                (folder / f"{number:03d}.{kind.lower()}").write_bytes(data)
    made = Prepared(
        root / "o", name="imagefolder", root=str(root / "images"), val_fraction=None
    ).run()
    stored = {
        n: Image.open(io.BytesIO(d)).convert("RGB") for n, (d, _, _) in made.stored("val").items()
    }
    return made.folder, stored
