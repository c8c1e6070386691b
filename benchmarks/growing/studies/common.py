"""Share code between the studies: a part of Fashion-MNIST, sweeps, tables, figures and files."""

from __future__ import annotations

import argparse
import gzip
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from rich.table import Table

from pipeline.compare import collect
from pipeline.compare.statistics import Mean, Pairs, holm, mean, paired
from pipeline.display.errors import UserError

PARTS = ("train", "t10k")
SIZES = (6000, 2000)  # numbers of training and test images: the first of each file
IDX = {"images-idx3": 16, "labels-idx1": 8}  # bytes of a file's header, by its kind
IMAGES = (
    "data=fashion_mnist", "data.channels=3", "train.augment.rotate=0", "train.augment.flip=true",
    "tracking=disabled",
)  # fmt: skip
TOP1 = "eval/fused/top1"
SECONDS = "train/wall_seconds"  # seconds of training, which other work of the machine affects

Found = dict[str, dict[int, collect.Run]]
"""Finished runs by variant and seed."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every study."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for data and runs")
    parser.add_argument("--report", action="store_true", help="only report the finished runs")
    parser.add_argument("--seeds", type=int, default=5, help="of each variant (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the answer goes")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="each seed a dot")
    return parser


def write_part(source: Path, target: Path, sizes: Sequence[int] = SIZES) -> None:
    """Write the first images of each part, in the original format.

    Args:
        source: folder of the whole data set.
        target: folder for the part.
        sizes: numbers of images for training and for the test.

    Raises:
        UserError: Fashion-MNIST is missing.
    """
    target.mkdir(parents=True, exist_ok=True)
    for part, count in zip(PARTS, sizes, strict=True):
        for kind, header in IDX.items():
            file = source / f"{part}-{kind}-ubyte.gz"
            if not file.is_file():
                raise UserError(f"{file} is not there; apt install dataset-fashion-mnist")
            copy = target / file.stem
            if copy.is_file():  # prep identifies files by their times
                continue
            content = gzip.decompress(file.read_bytes())
            (total,) = struct.unpack_from(">I", content, 4)
            size = (len(content) - header) // total
            first = content[:4] + struct.pack(">I", count) + content[8 : header + count * size]
            half = copy.with_suffix(".half")
            half.write_bytes(first)
            half.replace(copy)


def launch(folder: Path, words: Iterable[str]) -> None:
    """Launch a run or a sweep; finished runs are not repeated.

    Args:
        folder: folder of the study, with images in `data` and runs in `outputs`.
        words: words of the launch.

    Raises:
        SystemExit: a run failed.
    """
    places = (f"data.root={folder / 'data'}", f"root={folder / 'outputs'}")
    command = [sys.executable, "-m", "pipeline.launch", *words, *places]
    ended = subprocess.run(command, check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


def versus(found: Found, baseline: str, key: str) -> dict[str, Pairs]:
    """Return comparisons of each variant's number with the baseline's, paired by seed."""
    values = {
        name: {seed: run.metrics[key] for seed, run in runs.items()} for name, runs in found.items()
    }
    tests = {name: paired(its, values[baseline]) for name, its in values.items()}
    del tests[baseline]
    holm(list(tests.values()))
    return tests


def numbers(run: collect.Run) -> dict[str, float]:
    """Return the metrics of a run, and the seconds of its training."""
    hours = run.wall_hours
    return run.metrics | ({} if hours is None else {SECONDS: 3600 * hours})


def over(runs: Mapping[int, collect.Run], key: str) -> Mean | None:
    """Return the mean of a number over seeds."""
    return mean([values[key] for run in runs.values() if key in (values := numbers(run))])


def table(found: Found, columns: Mapping[str, str], baseline: str, title: str) -> Table:
    """Return means with 95 % intervals; the first column is tested against the baseline."""
    shown = Table(title=title)
    for column in ("", "seeds", *columns, f"against {baseline}", "p (Holm)"):
        shown.add_column(column, justify="right" if column else "left")
    tests = versus(found, baseline, next(iter(columns.values())))
    for name, runs in found.items():
        cells = [_interval(over(runs, key)) for key in columns.values()]
        shown.add_row(name, str(len(runs)), *cells, *_tested(tests.get(name)))
    return shown


def _interval(value: Mean | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.2f}" + (f" ± {value.half:.2f}" if value.half is not None else "")


def _tested(pairs: Pairs | None) -> tuple[str, str]:
    if pairs is None or pairs.difference is None or pairs.high is None:
        return "", ""
    half = pairs.high - pairs.difference
    p = "" if pairs.p_holm is None else f"{pairs.p_holm:.3f}"
    return f"{pairs.difference:+.2f} ± {half:.2f}, {pairs.verdict}", p


def dots(axis: plt.Axes, found: Found, key: str) -> None:
    """Draw a number of each variant, with a dot per seed and a bar at the mean."""
    for place, runs in enumerate(found.values()):
        values = [run.metrics[key] for run in runs.values()]
        axis.plot([place] * len(values), values, "o", ms=4, alpha=0.6, color="#3a6ea5")
        axis.hlines(sum(values) / len(values), place - 0.25, place + 0.25, color="#222222")
    axis.set_xticks(range(len(found)), [name.replace(", ", ",\n") for name in found])
    axis.spines[["top", "right"]].set_visible(False)


def rows(found: Found, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return each run's numbers, its source and its command."""
    return [
        {"variant": name, "seed": seed, "commit": run.source, "command": run.command}
        | {column: numbers(run).get(key) for column, key in columns.items()}
        for name, runs in found.items()
        for seed, run in sorted(runs.items())
    ]


def kept(tests: Mapping[str, Pairs], less: bool = False) -> dict[str, dict[str, Any]]:
    """Return tests in the form in which they are kept, each with its verdict.

    Args:
        tests: the tests, by variant.
        less: whether less is better.
    """
    turned = {"better": "worse", "worse": "better"} if less else {}
    return {
        name: pairs.__dict__ | {"verdict": turned.get(pairs.verdict, pairs.verdict)}
        for name, pairs in tests.items()
    }


def save(figure: plt.Figure, file: Path) -> None:
    """Write a figure; equal numbers give equal files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"svg.hashsalt": "dyrep", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")


def finished(folder: Path, group: str) -> list[collect.Run]:
    """Return the finished runs of a group."""
    runs = collect.read(collect.select(folder / "outputs", [], group))
    return [run for run in runs if run.state == "done"]
