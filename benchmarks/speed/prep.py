"""Compare prep with the work that it cannot avoid: decode with two decoders, encode, write.

Both run in turns on the same generated photographs, on all cores. The ratio is prep's images per
second divided by those of decoding with both decoders and writing the bytes, or, with
`prep.shrink`, of decoding, scaling, encoding and writing. The peak of memory is that of all
processes of prep together, at two sizes of the set.

    python -m benchmarks.prep --json benchmarks/results/prep.json
"""

import argparse
import io
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import evidence
from pipeline.config.data import Prep
from pipeline.data.prepare import build, examine
from pipeline.data.sources.base import Item, Listing
from pipeline.data.sources.choose import source
from pipeline.records.environment import cores

SHARD = 256


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=12000, help="of the set (default: 12000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    build.ALONE = 0  # use worker processes, as for a large set
    with tempfile.TemporaryDirectory(prefix="prep-") as folder:
        images = photographs(Path(folder) / "images", options.images)
        report = {
            "images": options.images,
            "cores": cores(),
            "kept": measure(images, Path(folder), None, options.rounds),
            "shrunk": measure(images, Path(folder), 256, options.rounds),
        }
    show(report)
    if options.json:
        evidence.write(options.json, report)
    return 0


def photographs(root: Path, count: int) -> Path:
    """Write JPEGs of 500x375, each many times, as generating them takes longer than reading."""
    from pipeline.config.data import Synthetic

    made = source(
        Synthetic(
            name="synthetic", root=None, image_size=224, resize=256, val_fraction=0.1, split_seed=0,
            max_bad=0.0, loader="auto", images=100, classes=2, height=375, width=500,
        )
    )  # fmt: skip
    originals = [made.read(item.name) for item in made.listing().splits["all"]]
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(originals[number % 100])
    return root


def measure(images: Path, folder: Path, shrink: int | None, rounds: int) -> dict:
    """Return the median ratio of prep to decoding and encoding alone, and prep's memory."""
    from pipeline.config.data import ImageFolder

    data = ImageFolder(
        name="imagefolder", root=str(images), image_size=224, resize=256, val_fraction=0.1,
        split_seed=0, max_bad=0.0, loader="auto",
    )  # fmt: skip
    settings = Prep(shard_images=SHARD, shrink=shrink, quality=92)
    listing = source(data).listing()
    ratios, speeds, peaks, where = [], [], [], folder / "shards"
    for _ in range(rounds):
        bare = timed(partial(alone, images, listing, shrink))
        where.mkdir()
        with Peak() as peak:
            work = build.tasks(listing, data, settings, where)
            own = timed(partial(build.build, work, cores(), lambda done: None))
        shutil.rmtree(where)
        ratios.append(bare / own)
        speeds.append(len(listing.splits["all"]) / own)
        peaks.append(peak.megabytes)
    return {
        "images_per_second": round(statistics.median(speeds), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "peak_megabytes": round(max(peaks)),
    }


def timed(work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def alone(images: Path, listing: Listing, shrink: int | None) -> None:
    """Decode every image with both decoders, encode it if it is shrunk, and write the bytes."""
    items = listing.splits["all"]
    parts = [(images, items[n : n + SHARD], shrink) for n in range(0, len(items), SHARD)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), mp_context=context) as pool:
        list(pool.map(decode_all, parts))


def decode_all(part: tuple[Path, list[Item], int | None]) -> None:
    images, items, shrink = part
    with tempfile.TemporaryFile(dir=images) as file:
        for item in items:
            data = (images / item.name).read_bytes()
            picture = Image.open(io.BytesIO(data))
            picture.load()
            if shrink is None:
                examine._other().decode(data)
            else:
                small = examine._shrunk(picture, shrink)
                data = examine._encoded(small, "JPEG", quality=92, subsampling=0)
            file.write(data)


class Peak:
    """The peak memory of this process and its children together, MB."""

    def __enter__(self) -> "Peak":
        self.megabytes, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            pids = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
            self.megabytes = max(self.megabytes, sum(map(resident, pids)))


def resident(pid: str) -> float:
    """Return the memory that a process does not share, MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    words = [line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(int(word[1]) for word in words) / 1024


def show(report: dict) -> None:
    """Print the table."""
    table = Table("images are", "prep, images/s", "ratio to the bare work", "each turn", "peak, MB")
    for name in ("kept", "shrunk"):
        row = report[name]
        turns = ", ".join(map(str, row["ratios"]))
        speed, peak = f"{row['images_per_second']:,.0f}", str(row["peak_megabytes"])
        table.add_row(name, speed, f"{row['ratio']:.2f}", turns, peak)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
