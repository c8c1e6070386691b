"""prep: check every image, split train from val, write shuffled shards.

Reads the source named by `data`. Writes `<root>/data/<fingerprint>/` (see `pipeline.data.shards`)
and links it as `data`. Fails when a split would be empty. Killed at any moment it leaves no
half-written folder: the folder gets its name when it is complete.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import rundir
from pipeline.data import shards
from pipeline.data.sources import SOURCES, Sample
from pipeline.errors import UserError
from pipeline.stage import Context


def run(context: Context) -> dict[str, float]:
    """Prepare the data; return counts."""
    final = rundir.data_dir(context.root, context.fingerprint)
    building = final.with_name(f".{final.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    metrics = _prepare(context, building)
    shutil.rmtree(final, ignore_errors=True)
    building.rename(final)
    rundir.sync(final.parent)
    rundir.link(context.dir / "data", final)
    return metrics


def _prepare(context: Context, folder: Path) -> dict[str, float]:
    data, source = context.config.data, SOURCES[context.config.data.name]
    samples, bad = [], 0
    for sample in context.track(source.samples(), source.images, "checking images"):
        reason = defect(sample, len(source.classes))
        if reason is None:
            samples.append(sample)
        else:
            bad += 1
            row = {"name": sample.name, "reason": reason}
            rundir.append_line(folder / "quarantine.jsonl", row)
    (folder / "quarantine.jsonl").touch()
    train, val = split(samples, data.val_fraction, data.split_seed)
    mean, std = statistics([samples[i] for i in train])
    parts = {
        name: shards.write_split(
            folder, name, ((i, samples[i]) for i in chosen), len(chosen),
            context.config.prep.shard_images,
        )
        for name, chosen in (("train", train), ("val", val))
    }  # fmt: skip
    parameters = {"data": data.model_dump(), "prep": context.config.prep.model_dump()}
    shards.Manifest(source.classes, mean, std, parts, parameters).save(folder)
    return {
        "images": len(samples),
        "train_images": len(train),
        "val_images": len(val),
        "classes": len(source.classes),
        "quarantined": bad,
    }


def defect(sample: Sample, classes: int) -> str | None:
    """Return why an image cannot be used, or None: it is decoded in full, not only its header."""
    if not 0 <= sample.label < classes:
        return f"label {sample.label} outside 0..{classes - 1}"
    try:
        with Image.open(io.BytesIO(sample.data)) as image:
            image.load()
    except Exception as error:  # Pillow raises many kinds for damaged data
        return f"cannot be decoded: {error}"
    return None


def split(samples: list[Sample], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of train (shuffled) and val, the same share of every class in each.

    Raises:
        UserError: a class has too few images to be in both.
    """
    from sklearn.model_selection import train_test_split

    labels = [sample.label for sample in samples]
    try:
        train, val = train_test_split(
            np.arange(len(samples)), test_size=share, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise UserError(f"data.val_fraction={share} cannot split these images: {error}") from None
    return train.tolist(), sorted(val.tolist())


Triple = tuple[float, float, float]


def statistics(samples: list[Sample]) -> tuple[Triple, Triple]:
    """Return mean and standard deviation of the pixels per RGB channel, on the scale 0 to 1."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for sample in samples:
        with Image.open(io.BytesIO(sample.data)) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 3) / 255
        total, squares, count = (
            total + pixels.sum(0),
            squares + (pixels**2).sum(0),
            count + len(pixels),
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    return _triple(mean), _triple(std)


def _triple(values: np.ndarray) -> Triple:
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue
