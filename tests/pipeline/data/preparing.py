"""Call the stage `prep` in this process, and make images for it."""

import io
import json
from types import SimpleNamespace

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from pipeline.config.data import Data, Prep
from pipeline.contract.stage import Context
from pipeline.contract.table import STAGES
from pipeline.data.shards import Manifest, images_in
from pipeline.data.sources.choose import source
from pipeline.records import rundir
from pipeline.stages import prep

COMMON = {
    "root": None, "image_size": 16, "resize": 16, "val_fraction": 0.25, "split_seed": 0,
    "max_bad": 0.0, "loader": "auto",
}  # fmt: skip


def settings(**changes):
    return TypeAdapter(Data).validate_python({**COMMON, **changes})


class Prepared:
    """The stage `prep` on given data, below a root of its own."""

    def __init__(self, where, shard_images=16, shrink=None, **data):
        self.dir = rundir.stage_dir(where, "prep", "abc")
        self.dir.mkdir(parents=True, exist_ok=True)
        self.folder = rundir.data_dir(where, "abc")
        self.context = Context(
            stage=STAGES["prep"], dir=self.dir, root=where, fingerprint="abc", parents={}, attempt=1,
            config=SimpleNamespace(
                data=settings(**data),
                prep=Prep(shard_images=shard_images, shrink=shrink, quality=92),
            ),
        )  # fmt: skip

    def run(self):
        self.metrics = prep.run(self.context)
        return self

    @property
    def manifest(self):
        return Manifest.load(self.folder)

    def stored(self, split):
        """Return (encoded image, extension, label) of each stored image, by its number."""
        return {
            number: rest
            for shard in self.manifest.splits[split].shards
            for number, *rest in images_in(self.folder / shard.name)
        }

    def quarantine(self):
        path = self.folder if self.folder.exists() else self.dir
        rows = (path / "quarantine.jsonl").read_text().splitlines()
        return {row["name"]: row["reason"] for row in map(json.loads, rows)}

    def remarks(self):
        rows = (self.folder / "remarks.jsonl").read_text().splitlines()
        return {row["name"]: row["remark"] for row in map(json.loads, rows)}

    def files(self):
        """Return the content of each file in the folder of prepared data, by its name."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


def picture(seed, height=24, width=30, mode="RGB"):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def folder(path, classes=("cat", "dog"), images=8):
    """Fill a folder with intact JPEGs, all different, and return it."""
    for label, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for number in range(images):
            file = path / name / f"{number:03d}.jpg"
            file.write_bytes(encoded(picture(1000 * label + number), quality=90))
    return path


def prepared(tmp_path, images, name="o", **changes):
    return Prepared(tmp_path / name, name="imagefolder", root=str(images), **changes)


def listing(**changes):
    return source(settings(**changes)).listing()
