"""Compare prep of images in tables and tar shards with prep of the same images in folders.

The same generated photographs are read as `imagefolder`, as parquet files (row groups of 100, as in
Hugging Face's files), as a saved data set and as webdataset tar shards. All run in turns in one
process, measured by its CPU time, including the listing. The ratio is the images per CPU-second
divided by those of the folders.

    python -m benchmarks.containers --json benchmarks/results/containers.json
"""

import argparse
import io
import json
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import evidence
from benchmarks.prep import photographs
from pipeline.config.data import ImageFolder, Parquet, Prep, WebDataset
from pipeline.data.prepare import build
from pipeline.data.sources.choose import source

COMMON = {
    "image_size": 224, "resize": 256, "val_fraction": 0.1, "split_seed": 0, "max_bad": 0.0,
    "loader": "auto",
}  # fmt: skip
SHARD = 500  # images per file
GROUP = 100  # images per row group


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000, help="of the set (default: 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="containers-") as folder:
        kinds = made(Path(folder), options.images)
        prepared(kinds["imagefolder"], Path(folder) / "shards")  # loads decoders, untimed
        spent = {name: [] for name in kinds}
        for turn in range(options.rounds):
            for name in list(kinds)[:: -1 if turn % 2 else 1]:
                spent[name].append(prepared(kinds[name], Path(folder) / "shards"))
    report = {"images": options.images, "kinds": rates(spent, options.images)}
    show(report)
    if options.json:
        evidence.write(options.json, report)
    return 0


def made(folder: Path, count: int) -> dict:
    """Write the images in every form; return the settings that read each form."""
    images = photographs(folder / "images", count)
    paths = sorted(images.rglob("*.jpg"), key=lambda path: path.name)
    parts = [paths[n : n + SHARD] for n in range(0, count, SHARD)]
    tables(folder / "parquet", folder / "saved", parts)
    shards(folder / "tars", parts)
    columns = {"image_column": None, "label_column": None}
    forms = {name: str(folder / name) for name in ("parquet", "saved", "tars")}
    return {
        "imagefolder": ImageFolder(name="imagefolder", root=str(images), **COMMON),
        "parquet": Parquet(name="parquet", root=forms["parquet"], **columns, **COMMON),
        "saved": Parquet(name="parquet", root=forms["saved"], **columns, **COMMON),
        "webdataset": WebDataset(
            name="webdataset", root=forms["tars"], train=None, val=None, **COMMON
        ),
    }


def tables(parquets: Path, saved: Path, parts: list[list[Path]]) -> None:
    import pyarrow
    from pyarrow import parquet

    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    parquets.mkdir()
    saved.mkdir()
    for name, paths in zip(names, parts, strict=True):
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        table = pyarrow.table({"image": rows, "label": [path.parent.name for path in paths]})
        parquet.write_table(table, parquets / f"{name}.parquet", row_group_size=GROUP)
        with pyarrow.ipc.new_stream(str(saved / name), table.schema) as stream:
            stream.write_table(table, GROUP)
    files = [{"filename": name} for name in names]
    (saved / "state.json").write_text(json.dumps({"_data_files": files}))


def shards(folder: Path, parts: list[list[Path]]) -> None:
    folder.mkdir()
    for number, paths in enumerate(parts):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as tar:
            for path in paths:
                tar.add(path, path.name)
                label = path.parent.name.encode()
                info = tarfile.TarInfo(f"{path.stem}.cls")
                info.size = len(label)
                tar.addfile(info, io.BytesIO(label))


def prepared(data, where: Path) -> float:
    """Return the CPU seconds for listing, checking and writing."""
    where.mkdir()
    settings = Prep(shard_images=512, shrink=None, quality=92)
    begun = time.process_time()
    work = build.tasks(source(data).listing(), data, settings, where)
    build.build(work, 1, lambda done: None)
    spent = time.process_time() - begun
    shutil.rmtree(where)
    return spent


def rates(spent: dict[str, list[float]], count: int) -> dict:
    """Return images per CPU-second, and the ratio to the folders in each turn."""
    return {
        name: {
            "images_per_cpu_second": round(count / statistics.median(times), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
        for name, times in spent.items()
        for ratios in [[a / b for a, b in zip(spent["imagefolder"], times, strict=True)]]
    }


def show(report: dict) -> None:
    """Print the table."""
    table = Table("images are in", "images per CPU-second", "ratio to folders", "each turn")
    for name, row in report["kinds"].items():
        turns = ", ".join(map(str, row["ratios"]))
        table.add_row(name, f"{row['images_per_cpu_second']:,.0f}", f"{row['ratio']:.2f}", turns)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
