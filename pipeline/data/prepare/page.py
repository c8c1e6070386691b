"""Write data.html, which shows the prepared data: a picture of each class, and left-out images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.prepare import findings
from pipeline.data.shards import Manifest, images_in
from pipeline.records import rundir
from pipeline.report import render as fill

PAGE = "data/prepare/page.html"
CLASSES = 100  # classes shown with a picture, at most
ROWS = 200  # rows shown of a list, at most
SIDE = 96  # side of a picture, pixels


def render(folder: Path, metrics: dict[str, float]) -> str:
    """Return the page of a prepared folder, as one file that needs no other."""
    manifest = Manifest.load(folder)
    return fill(
        PAGE,
        name=manifest.parameters["data"]["name"],
        classes=_classes(folder, manifest),
        hidden=max(0, len(manifest.classes) - CLASSES),
        manifest=manifest,
        metrics=metrics,
        lists={
            "Images left out": _rows(folder / findings.QUARANTINE, "reason"),
            "Images kept although odd": _rows(folder / findings.REMARKS, "remark"),
            "Files that are not images of the set": _rows(folder / findings.PASSED, "reason"),
        },
        rows=ROWS,
    )


def render_refused(name: str, counts: Mapping[str, float], quarantine: Path) -> str:
    """Return the page for refused images, which shows only the errors.

    Args:
        name: the name of the source.
        counts: numbers to show, by name.
        quarantine: the path of the list of bad images.
    """
    lists = {"Bad images": _rows(quarantine, "reason")}
    return fill(PAGE, name=name, manifest=None, metrics=counts, lists=lists, rows=ROWS)


@dataclass(frozen=True)
class Class:
    """A class on the page: the number of its images, and one of them as a data URL."""

    name: str
    train: int
    val: int
    picture: str


def _classes(folder: Path, manifest: Manifest) -> list[Class]:
    train, val = manifest.splits["train"], manifest.splits["val"]
    pictures: dict[int, str] = {}
    wanted = min(CLASSES, len(manifest.classes))
    for shard in train.shards:
        if len(pictures) == wanted:
            break
        for _, data, _, label in images_in(folder / shard.name):
            if label < CLASSES and label not in pictures:
                pictures[label] = _thumbnail(data)
    return [
        Class(name, train.counts[label], val.counts[label], pictures.get(label, ""))
        for label, name in enumerate(manifest.classes[:CLASSES])
    ]


def _thumbnail(data: bytes) -> str:
    """Return a small picture as a data URL."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG" if min(image.size) < 64 else "JPEG")
    kind = "png" if min(image.size) < 64 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _rows(path: Path, key: str) -> list[tuple[str, str]]:
    return [(row["name"], row[key]) for row in rundir.read_lines(path)]
