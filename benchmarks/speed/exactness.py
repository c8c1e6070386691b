"""Check that loaders cover each image once and resume exactly; part of `benchmarks.data`.

Coverage: 103 images, 1 to 5 processes, 5 epochs. Resume: for every loader that can read a source,
the batches of two epochs are hashed and compared with those of new loaders that begin at saved
positions, at random points.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.train import Augment
from pipeline.data.loaders.base import Batch, Loader, LoaderSpec
from pipeline.data.loaders.choose import kinds, make, named

COUNT, EPOCHS, POINTS = 103, 5, 8
PLAIN = {
    "crop": "none", "scale": [0.08, 1.0], "ratio": [0.75, 1.333], "padding": 0, "rotate": 0.0,
    "translate": 0.0, "flip": True, "jitter": [0.0] * 4, "policy": None, "erase": 0.0, "cutout": 0,
    "mixup": 0.0, "cutmix": 0.0, "repeats": 1, "progressive": None,
}  # fmt: skip
CHANGES = {"dali": {"rotate": 10.0}, "memory": {"rotate": 10.0, "erase": 0.5},
           "torch": {"policy": "randaugment"}}  # fmt: skip


def spec(folder: Path, split: str, **facts: object) -> LoaderSpec:
    """Return the spec of a loader of small squares; in training they are flipped."""
    augment = Augment(**PLAIN) if split == "train" else None
    defaults = {"batch_size": 4, "image_size": 24, "resize": 24, "augment": augment}
    return LoaderSpec(folder=folder, split=split, **{**defaults, **facts})


def ranks(kind: str, world_size: int, folder: Path, split: str) -> list[Loader]:
    """Return the loaders of all processes."""
    return [
        make(kind, spec(folder, split, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]


def coverage(folder: Path) -> list[dict]:
    """Count how often each of 103 training and 103 validation images is loaded."""
    rows = []
    for kind in kinds():
        for world_size in range(1, 6):
            loaders = ranks(kind, world_size, folder, "train")
            epochs = [seen(loaders) for _ in range(EPOCHS)]
            validation = seen(ranks(kind, world_size, folder, "val"))
            rows.append(
                {
                    "loader": kind,
                    "processes": world_size,
                    "owed": COUNT // (4 * world_size) * 4 * world_size,
                    "seen": sorted({epoch.total() for epoch in epochs}),
                    "most_often": max(max(epoch.values()) for epoch in epochs),
                    "validation": validation.total(),
                    "validation_different": len(validation),
                }
            )
    return rows


def seen(loaders: list[Loader]) -> Counter[int]:
    """Return how often each image is loaded in an epoch, over all processes."""
    return Counter(n for loader in loaders for batch in loader for n in batch.numbers.tolist())


def resume(folders: dict[str, Path]) -> list[dict]:
    """Resume from random points of two epochs; count the points after which all batches agree."""
    rows, chance = [], random.Random(0)
    for source, folder in folders.items():
        for kind in kinds():
            augment = Augment(**{**PLAIN, **CHANGES[kind]})
            if named(kind).cannot(spec(folder, "train", augment=augment)):
                continue
            for world_size in (1, 2):
                own = [
                    spec(folder, "train", augment=augment, rank=rank, world_size=world_size)
                    for rank in range(world_size)
                ]
                exact = [goes_on(kind, one, chance) for one in own for _ in range(POINTS)]
                rows.append(
                    {
                        "source": source, "loader": kind, "processes": world_size,
                        "points": len(exact), "exact": sum(exact),
                    }
                )  # fmt: skip
    return rows


def goes_on(kind: str, own: LoaderSpec, chance: random.Random) -> bool:
    """Whether a loader that resumes at a random point yields the same batches as the first one."""
    first = make(kind, own)
    stop = chance.randrange(2 * len(first))
    batches = endless(first)
    for _ in range(stop):
        next(batches)
    state = first.state()
    rest = 2 * len(first) - stop
    return hashes(batches, rest) == hashes(endless(make(kind, own, state)), rest)


def endless(loader: Loader) -> Iterator[Batch]:
    """Yield batches of epoch after epoch."""
    while True:
        yield from loader


def hashes(batches: Iterator[Batch], count: int) -> list[str]:
    """Return hashes of the pixels, labels and numbers of the next batches."""
    return [
        hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in next(batches))).hexdigest()
        for _ in range(count)
    ]
