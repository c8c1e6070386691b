"""Run all stages on a few thousand JPEGs, 1 % of them damaged, and check what prep left out.

The benchmark writes photographs of waves in four classes, damages some of them in eight ways,
copies a few training images into the validation folder, and launches all stages on the folder. Then
it checks that prep left out exactly the images that were planted.

    python -m benchmarks.damage /tmp/waves --json benchmarks/results/damage.json
"""

import argparse
import io
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import PROJECT, evidence
from pipeline.records import rundir

CLASSES = ("across", "diagonal", "down", "other")
SETTINGS = (
    "stage=all", "data=imagefolder", "data.image_size=64", "data.resize=72", "data.max_bad=0.02",
    "train=imagenet", "train.epochs=3", "train.batch_size=64", "method.adjust_interval=1",
    "method.last_adjust_epoch=1", "name=waves",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new folder for the images and the run")
    parser.add_argument("--images", type=int, default=4000, help="all together (default: 4000)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} is there already")
    images, root = options.folder / "images", options.folder / "outputs"
    planted = spoil(images, write(images, options.images))
    command = [sys.executable, "-m", "pipeline.launch", *SETTINGS]
    command += [f"data.root={images}", f"root={root}"]
    code = subprocess.run(command, cwd=PROJECT).returncode
    if code:
        return code
    report = compare(planted, root / "runs" / "waves")
    show(report)
    if options.json:
        evidence.write(options.json, {"images": options.images, **report})
    return 0 if not report["missed"] and not report["too_many"] else 1


def write(images: Path, count: int) -> list[Path]:
    """Write JPEGs of 160x120: shades and a wave whose direction is the class; a tenth is val."""
    paths = []
    for number in track(range(count), description="photographs"):
        chance = np.random.default_rng(number)
        label = number % len(CLASSES)
        y, x = np.mgrid[:120, :160] / chance.uniform(4, 8) + chance.uniform(0, 6)
        wave = np.sin((y, (x + y) / 1.4, x, np.hypot(x - 12, y - 9))[label])
        shades = chance.integers(40, 216, (6, 8, 3), dtype=np.uint8)
        shades = Image.fromarray(shades).resize((160, 120), Image.Resampling.BICUBIC)
        pixels = (np.asarray(shades) + 40 * wave[..., None]).clip(0, 255).astype(np.uint8)
        split = "val" if number // len(CLASSES) % 10 == 0 else "train"
        path = images / split / CLASSES[label] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
        paths.append(path)
    return paths


def broken_bit(data: bytes) -> bytes:
    """Return a JPEG with one flipped bit, such that the stream cannot be read to its end."""
    for place in range(len(data) // 2, len(data)):
        changed = data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]
        try:
            Image.open(io.BytesIO(changed)).load()
        except OSError:
            return changed
    raise ValueError("no bit of it breaks the stream")


def animated(data: bytes) -> bytes:
    """Return an animation of two frames."""
    stream = io.BytesIO()
    first = Image.open(io.BytesIO(data)).convert("P")
    first.save(stream, "GIF", save_all=True, append_images=[first.rotate(90)])
    return stream.getvalue()


def thin(data: bytes) -> bytes:
    """Return an image with one row of pixels."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).crop((0, 0, 160, 1)).save(stream, "PNG")
    return stream.getvalue()


WAYS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "empty file"),
    "header only": (lambda data: data[: data.index(b"\xff\xda") + 20], "cannot be decoded"),
    "truncated": (lambda data: data[: len(data) * 2 // 3], "cannot be decoded"),
    "a broken bit": (broken_bit, "cannot be decoded"),
    "a web page": (lambda data: b"<!doctype html><title>404</title>", "no image"),
    "random bytes": (lambda data: random.Random(len(data)).randbytes(len(data)), "no image"),
    "animated": (animated, "animated, 2 frames"),
    "a thin strip": (thin, "thinner than 1:50"),
}
LEAK = "also in val"


def spoil(images: Path, paths: list[Path]) -> dict[str, str]:
    """Damage 1 % of the images and copy some into val; return the kind of damage by name."""
    chance = random.Random(0)
    chosen = chance.sample(paths, len(paths) // 100)
    planted = {}
    for number, path in enumerate(chosen):
        way = list(WAYS)[number % len(WAYS)]
        path.write_bytes(WAYS[way][0](path.read_bytes()))
        planted[str(path.relative_to(images))] = way
    sound = [path for path in paths if path not in chosen and "train" in path.parts]
    for path in chance.sample(sound, 5):
        copy = images / "val" / path.parent.name / f"copy-of-{path.name}"
        copy.write_bytes(path.read_bytes())
        planted[str(path.relative_to(images))] = LEAK
    return planted


def compare(planted: dict[str, str], run: Path) -> dict:
    """Return the planted damage, and the differences to prep's quarantine."""
    found = {
        row["name"]: row["reason"]
        for row in rundir.read_lines(run / "prep" / "data" / "quarantine.jsonl")
    }
    words = {way: reason for way, (_, reason) in WAYS.items()} | {LEAK: "is also a validation"}
    results = {name: rundir.read_json(run / name / rundir.RESULT) for name in ("prep", "eval")}
    return {
        "planted": dict(Counter(planted.values())),
        "missed": sorted(planted.keys() - found.keys()),
        "too_many": sorted(found.keys() - planted.keys()),
        "other_reason": sorted(
            name for name, way in planted.items() if words[way] not in found.get(name, "")
        ),
        "train_images": results["prep"]["metrics"]["train_images"],
        "val_images": results["prep"]["metrics"]["val_images"],
        "top1": results["eval"]["metrics"]["fused/top1"],
    }


def show(report: dict) -> None:
    """Print the planted damage, and the damage that prep did not report correctly."""
    table = Table("planted", "images", title="damage")
    for way, count in report["planted"].items():
        table.add_row(way, str(count))
    Console().print(table)
    for name in ("missed", "too_many", "other_reason"):
        print(f"{name.replace('_', ' ')}: {', '.join(report[name]) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
