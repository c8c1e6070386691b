"""Run whole trainings on Fashion-MNIST through the real launcher: seconds to 93 %, and methods.

`plain` runs first; then `dbb` and `dyrep`, as long as time is left, with as many epochs as have the
cost of those of `plain` (their steps cost more). `plain_epochs` is the cost of a training in epochs
of the plain network, as counted by the pipeline. There is one seed each, so this table alone cannot
show which method is better.
"""

from __future__ import annotations

import gzip
import struct
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.gpu_campaign.launching import launched
from benchmarks.gpu_campaign.report import Report, Request
from pipeline.planning.conf import CONF
from pipeline.records import rundir

GOAL = 93.0  # top-1, percent
EPOCHS = 12
RECIPE = [
    "model=resnet18", "train=cifar", "train.batch_size=512", "train.lr=0.2", "train.nesterov=true",
    "train.weight_decay=5e-4", "train.warmup_epochs=1", "train.precision=bfloat16",
    "train.augment.padding=2", "train.augment.cutout=0", "data.loader=memory", "data.image_size=28",
    "data.resize=28",
]  # fmt: skip
SMALL = ["data=digits", "data.channels=3", "data.loader=memory", "train.warmup_epochs=0"]


def run(request: Request, report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, epochs = Path(folder), 2 if request.small else EPOCHS
        settings = SMALL if request.small else [*source(request.data, root / "images"), *RECIPE]
        plain = trained(root, "plain", epochs, settings)
        report.add("plain", plain)
        for method in ("dbb", "dyrep"):
            if not report.fits(method, 1.5 * plain["stage_seconds"] + 15):
                continue
            first = trained(root, method, 1 if method == "dbb" else epochs, settings)
            report.add(f"{method}, {first['epochs']} epochs", first)
            fewer = max(2, round(epochs * first["epochs"] / first["plain_epochs"]))
            key = f"{method} at equal cost"
            if fewer != first["epochs"] and report.fits(key, 1.2 * plain["stage_seconds"] + 15):
                report.add(key, trained(root, method, fewer, settings))


def source(data: Path, folder: Path) -> list[str]:
    """Return the settings that read Fashion-MNIST, from a folder of images if necessary."""
    if (CONF / "data" / "fashion_mnist.yaml").exists():
        return ["data=fashion_mnist", "data.channels=3", f"data.root={data}"]
    for split, part in (("train", "train"), ("val", "t10k")):
        pictures = idx(data / f"{part}-images-idx3-ubyte.gz")
        labels = idx(data / f"{part}-labels-idx1-ubyte.gz")
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
        paths = [folder / split / str(label) / f"{n:05d}.png" for n, label in enumerate(labels)]
        with ProcessPoolExecutor() as pool:
            list(pool.map(_save, pictures, paths, chunksize=500))
    return ["data=imagefolder", f"data.root={folder}"]


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)


def idx(path: Path) -> np.ndarray:
    """Return the array of a file in the format of MNIST (big-endian sizes, then bytes)."""
    content = gzip.decompress(path.read_bytes())
    sizes = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(sizes)


def trained(root: Path, method: str, epochs: int, settings: list[str]) -> dict:
    """Train to the end; return accuracy, cost and times."""
    begun = time.monotonic()
    words = [f"method={method}", *settings, f"train.epochs={epochs}"]
    stage = launched(root, f"{method}-{epochs}", *words)
    seconds_launched = time.monotonic() - begun
    result = rundir.read_json(stage / rundir.RESULT)
    rows = [row for row in rundir.read_lines(stage / rundir.HISTORY) if row["kind"] == "epoch"]
    metrics, steps = result["metrics"], result["metrics"]["steps"] / epochs
    seconds = sum(row["seconds"] for row in rows)
    return {
        "epochs": epochs,
        "top1": metrics["top1"],
        "best_top1": max(row["top1"] for row in rows),
        "plain_epochs": metrics["plain_steps"] / steps,
        "grown": metrics["grown"],
        "seconds_to_goal": to_goal(rows),
        "goal": GOAL,
        "each_top1": [row["top1"] for row in rows],
        "epoch_seconds": [row["seconds"] for row in rows],
        "images_per_s": max(row["images_per_s"] for row in rows),
        "waiting_percent": 100 * sum(row["data_seconds"] for row in rows) / seconds,
        "stage_seconds": result["seconds"],
        "launch_seconds": seconds_launched,
    }


def to_goal(rows: list[dict]) -> float | None:
    """Return the seconds of training until an epoch ended with the accuracy `GOAL`."""
    spent = 0.0
    for row in rows:
        spent += row["seconds"]
        if row["top1"] >= GOAL:
            return spent
    return None
