"""Measure the loaders: their speed on the same images, and their match with torchvision.

Decoding: 224-pixel random crops from generated photographs of 500x375, in images per second of CPU
time of all processes, measured in turns. A ratio of 1.0 is the usual way: torchvision's transforms
on images that Pillow decodes, one by one in a DataLoader. Small images: 32x32 from memory, compared
with the same per-sample DataLoader. Parity: largest and mean difference from torchvision's
evaluation transform, in units of 1/255, over images of odd sizes. Coverage and resume: see
`exactness`.

    python -m benchmarks.data --json benchmarks/results/data.json
"""

import argparse
import io
import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision.io import decode_image
from torchvision.transforms import v2

from benchmarks import evidence, exactness
from benchmarks.exactness import PLAIN
from pipeline.config.data import Data, Prep
from pipeline.config.train import Augment
from pipeline.contract.stage import Context
from pipeline.contract.table import STAGES
from pipeline.data.loaders.base import LoaderSpec
from pipeline.data.loaders.choose import make
from pipeline.data.shards import images_in
from pipeline.records import rundir
from pipeline.stages import prep


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=640, help="photographs (default: 640)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="data-") as folder:
        report = {
            "cores": os.cpu_count(),
            "decoding": decoding(Path(folder) / "large", options.images, options.rounds),
            "small": small(Path(folder) / "small", options.rounds),
            "parity": parity(Path(folder) / "odd", 230),
            "coverage": exactness.coverage(halves(Path(folder) / "103")),
            "resume": exactness.resume(sources(Path(folder))),
        }
    show(report)
    if options.json:
        evidence.write(options.json, report)
    return 0


def prepared(where: Path, **data: object) -> Path:
    """Prepare generated images; return their folder."""
    common = {"root": None, "image_size": 224, "resize": 256, "val_fraction": 0.1, "split_seed": 0,
              "max_bad": 0.0, "loader": "auto"}  # fmt: skip
    directory = rundir.stage_dir(where, "prep", "abc")
    directory.mkdir(parents=True)
    context = Context(
        stage=STAGES["prep"], dir=directory, root=where, fingerprint="abc", parents={}, attempt=1,
        config=SimpleNamespace(
            data=TypeAdapter(Data).validate_python({**common, **data}),
            prep=Prep(shard_images=256, shrink=None, quality=92),
        ),
    )  # fmt: skip
    prep.run(context)
    return rundir.data_dir(where, "abc")


def halves(root: Path) -> Path:
    """Prepare 103 training and 103 validation images."""
    size = {"height": 32, "width": 32, "image_size": 24, "resize": 24}
    count = 2 * exactness.COUNT
    return prepared(root, name="synthetic", classes=2, images=count, val_fraction=0.5, **size)


def sources(root: Path) -> dict[str, Path]:
    """Prepare a folder for each kind of source: images of one size, of many sizes, embedded."""
    size = {"height": 32, "width": 32, "image_size": 24, "resize": 24}
    photographs = pictures(root / "photographs", 120)
    return {
        "digits": prepared(root / "digits", name="digits"),
        "synthetic": prepared(root / "alike", name="synthetic", classes=2, images=120, **size),
        "imagefolder": prepared(root / "folder", name="imagefolder", root=str(photographs)),
    }


class Samples(Dataset):
    """Images decoded one by one, as torchvision's ImageFolder does."""

    def __init__(self, folder: Path, transform: v2.Transform) -> None:
        self.data = [
            data for tar in sorted(folder.glob("train-*.tar")) for _, data, *_ in images_in(tar)
        ]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.decoded(self.data[index]))

    def decoded(self, data: bytes) -> Image.Image | torch.Tensor:
        return Image.open(io.BytesIO(data)).convert("RGB")


class DecodedByTorchvision(Samples):
    """The same images decoded by torchvision.io, and transformed as tensors."""

    def decoded(self, data: bytes) -> torch.Tensor:
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), "RGB")


def per_sample(
    folder: Path, batch: int, *changes: v2.Transform, samples: type[Samples] = Samples
) -> DataLoader:
    """Return the usual way to load images: a DataLoader over single samples."""
    transform = v2.Compose(
        [
            *changes, v2.RandomHorizontalFlip(), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )  # fmt: skip
    return DataLoader(
        samples(folder, transform), batch, shuffle=True, num_workers=2, drop_last=True
    )


def ours(kind: str, folder: Path, batch: int, size: int, resize: int, **augment: object):
    """Return a loader of the pipeline for training."""
    spec = LoaderSpec(
        folder=folder, split="train", batch_size=batch, image_size=size, resize=resize,
        augment=Augment(**{**PLAIN, **augment}),
    )  # fmt: skip
    return make(kind, spec)


def decoding(root: Path, images: int, rounds: int) -> dict:
    """Measure 224-pixel crops of photographs."""
    folder = prepared(root, name="synthetic", classes=10, images=images, height=375, width=500)
    crop = {"crop": "resized", "size": 224, "resize": 256}
    return in_turns(
        {
            "torchvision, Pillow, DataLoader": per_sample(folder, 64, v2.RandomResizedCrop(224)),
            "torchvision.io, DataLoader": per_sample(
                folder, 64, v2.RandomResizedCrop(224), samples=DecodedByTorchvision
            ),
            "data.loader=torch": ours("torch", folder, 64, **crop),
            "data.loader=dali": ours("dali", folder, 64, **crop),
        },
        rounds,
    )


def small(root: Path, rounds: int) -> dict:
    """Measure 32x32 images, padded and cropped."""
    square = {"height": 32, "width": 32, "image_size": 32, "resize": 32}
    folder = prepared(root, name="synthetic", classes=10, images=4000, **square)
    crop = {"crop": "pad", "padding": 4, "size": 32, "resize": 32}
    return in_turns(
        {
            "torchvision, Pillow, DataLoader": per_sample(folder, 128, v2.RandomCrop(32, 4)),
            "data.loader=torch": ours("torch", folder, 128, **crop),
            "data.loader=dali": ours("dali", folder, 128, **crop),
            "data.loader=memory": ours("memory", folder, 128, **crop),
        },
        rounds,
    )


def in_turns(loaders: dict[str, object], rounds: int) -> dict:
    """Return each loader's images per CPU-second, and the ratio to the first in the same round."""
    for loader in loaders.values():
        epoch(loader)  # a first epoch starts workers and pipelines
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in track(range(rounds), description="rounds"):
        for name, loader in loaders.items():
            images, seconds = epoch(loader)
            speeds[name].append(images / seconds)
    first = next(iter(speeds.values()))
    return {
        name: {
            "images_per_cpu_second": round(statistics.median(own), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(own, first, strict=True)), 2),
            "spread": [round(min(own), 1), round(max(own), 1)],
        }
        for name, own in speeds.items()
    }


def epoch(loader: object) -> tuple[int, float]:
    """Load an epoch; return the number of images and the CPU seconds, including workers."""
    begun, images = cpu_seconds(), 0
    for batch in loader:
        images += len(batch if isinstance(batch, torch.Tensor) else batch.images)
    return images, cpu_seconds() - begun


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its workers that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def parity(root: Path, images: int) -> dict:
    """Compare the loaders' evaluation transforms with torchvision's on Pillow images."""
    source = pictures(root / "images", images)
    folder = prepared(root / "o", name="imagefolder", root=str(source), val_fraction=0.9)
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    shown = {
        number: torch.from_numpy(np.array(theirs(Image.open(io.BytesIO(data)).convert("RGB"))))
        for tar in sorted(folder.glob("val-*.tar"))
        for number, data, *_ in images_in(tar)
    }
    return {kind: differences(kind, folder, shown) for kind in ("dali", "torch")}


def pictures(source: Path, images: int) -> Path:
    """Write images of odd sizes and modes, in two classes."""
    random = np.random.default_rng(0)
    for number in range(images):
        height, width = (int(side) for side in random.integers(180, 640, 2))
        coarse = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture = picture.convert(("RGB", "L", "CMYK", "P")[number % 4])
        kind = ("JPEG", "JPEG", "JPEG", "PNG")[number % 4]
        folder = source / "ab"[number // 4 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number:03d}.{kind.lower()}", kind)
    return source


def differences(kind: str, folder: Path, shown: dict[int, torch.Tensor]) -> dict:
    """Return the differences between a loader's pixels and torchvision's."""
    spec = LoaderSpec(
        folder=folder, split="val", batch_size=16, image_size=224, resize=256, augment=None
    )
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.manifest.mean, spec.manifest.std))
    found = [
        ((image * std + mean) * 255 - shown[number].movedim(2, 0)).abs()
        for batch in make(kind, spec)
        for image, number in zip(batch.images, batch.numbers.tolist(), strict=True)
    ]
    return {
        "images": len(found),
        "max": round(max(float(d.max()) for d in found), 2),
        "mean": round(statistics.fmean(float(d.mean()) for d in found), 4),
    }


def show(report: dict) -> None:
    """Print the tables."""
    console = Console()
    titles = {"decoding": "224-pixel crops of 500x375 photographs", "small": "32x32 images"}
    for key, title in titles.items():
        table = Table("", "images per CPU-second", "ratio", "lowest to highest", title=title)
        for name, row in report[key].items():
            low, high = row["spread"]
            speed = f"{row['images_per_cpu_second']:,.0f}"
            table.add_row(name, speed, f"{row['ratio']:.2f}", f"{low:,.0f} – {high:,.0f}")
        console.print(table)
    table = Table("data.loader", "images", "largest difference", "mean", title="evaluation")
    for name, row in report["parity"].items():
        table.add_row(name, str(row["images"]), f"{row['max']:.2f}", f"{row['mean']:.4f}")
    console.print(table)
    titles = {"coverage": "103 images, 5 epochs", "resume": "going on from random points"}
    for key, title in titles.items():
        table = Table(*(name.replace("_", " ") for name in report[key][0]), title=title)
        for row in report[key]:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
