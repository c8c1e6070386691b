"""All methods at equal cost, and what their networks know beyond top-1.

A sweep of the pipeline over methods and seeds on a part of Fashion-MNIST. Each training may cost as
much as some epochs of the plain network (`train.budget.plain_epochs`). The fused networks are then
tested on the test images, on the same images blurred, noisy and compressed, in int8, and for how
well their probabilities are calibrated.

    python -m benchmarks.studies.methods FOLDER --json benchmarks/results/studies/methods.json

A second call goes on where the first was stopped. About a minute of one core per run.
"""

from __future__ import annotations

import argparse
import gzip
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks import evidence
from benchmarks.growth_study.data import DEBIAN
from pipeline.compare import collect
from pipeline.compare.statistics import Mean, Pairs, holm, mean, paired
from pipeline.errors import DONE, UserError

GROUP = "methods"
METHODS = ("plain", "repvgg", "acb", "dbb", "orepa", "dyrep", "grow")
STARTED = "plain, identity"  # the start that is the default of grow, without growing
EPOCHS = 6  # of the plain network
SIZES = {"train": 6000, "t10k": 2000}  # images of each part: the first of its file
IDX = {"images-idx3": 16, "labels-idx1": 8}  # bytes of a file's header
SETTINGS = (
    "data=fashion_mnist",
    "model.widths=[[16,16],[32,32],[64,64]]",
    "train.augment.rotate=0",
    "train.augment.flip=true",
    f"train.budget.plain_epochs={EPOCHS}",
    "stage.run=[prep,train,fuse,eval]",
    "fuse.exports=[int8]",
    "eval.shifts=[blur,noise,jpeg]",
    "tracking=disabled",
)
COLUMNS = {
    "top-1": "eval/fused/top1",
    "blur": "eval/fused/blur/top1",
    "noise": "eval/fused/noise/top1",
    "jpeg": "eval/fused/jpeg/top1",
    "int8": "eval/int8/top1",
    "calibration error": "eval/fused/ece",
    "steps": "train/steps",
}
"""Columns of the table: all in %, but steps."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for data and runs")
    parser.add_argument("--seeds", type=int, default=5, help="of each method (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the answer goes")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="each seed a dot")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    write_part(DEBIAN, folder / "data")
    sweep(folder, options.seeds)
    runs = collect.read(collect.select(folder / "outputs", [], GROUP))
    found = {name: of for name in (*METHODS, STARTED) if (of := named(runs, name))}
    Console(width=150).print(table(found))
    if options.figure:
        draw(found).savefig(options.figure, metadata={"Date": None}, bbox_inches="tight")
    if options.json:
        evidence.write(options.json, report(found))
    return DONE


def write_part(source: Path, target: Path) -> None:
    """Write the first images of each part, in the format they came in.

    Raises:
        UserError: Fashion-MNIST is not there.
    """
    target.mkdir(parents=True, exist_ok=True)
    for part, count in SIZES.items():
        for kind, header in IDX.items():
            file = source / f"{part}-{kind}-ubyte.gz"
            if not file.is_file():
                raise UserError(f"{file} is not there; apt install dataset-fashion-mnist")
            copy = target / file.stem
            if copy.is_file():  # prep knows files by their times
                continue
            content = gzip.decompress(file.read_bytes())
            (total,) = struct.unpack_from(">I", content, 4)
            size = (len(content) - header) // total
            first = content[:4] + struct.pack(">I", count) + content[8 : header + count * size]
            half = copy.with_suffix(".half")
            half.write_bytes(first)
            half.replace(copy)


def sweep(folder: Path, seeds: int) -> None:
    """Launch what is not finished; the output is that of the launch.

    Raises:
        SystemExit: a run failed.
    """
    common = (*SETTINGS, f"data.root={folder / 'data'}", f"root={folder / 'outputs'}")
    for methods in (["method=" + ",".join(METHODS)], ["method=plain", "method.start=identity"]):
        words = ["-m", *methods, f"seed=range({seeds})", f"group={GROUP}", *common]
        ended = subprocess.run([sys.executable, "-m", "pipeline.launch", *words], check=False)
        if ended.returncode:
            sys.exit(ended.returncode)


def named(runs: Sequence[collect.Run], name: str) -> dict[int, collect.Run]:
    """Return the finished runs of a method by seed."""
    method = "plain" if name == STARTED else name
    start = "identity" if name in (STARTED, "grow") else "drawn"
    return {
        run.seed: run
        for run in runs
        if run.state == "done"
        and run.settings["method.name"] == method
        and run.settings.get("method.start", "drawn") == start
    }


def table(found: dict[str, dict[int, collect.Run]]) -> Table:
    """Return means with 95 % intervals, and top-1 against plain, paired by seed."""
    shown = Table(title=f"each for what {EPOCHS} epochs of plain cost")
    for column in ("method", "seeds", *COLUMNS, "against plain", "p (Holm)"):
        shown.add_column(column, justify="left" if column == "method" else "right")
    tests = versus(found)
    for name, runs in found.items():
        cells = [_told(over(runs, key)) for key in COLUMNS.values()]
        shown.add_row(name, str(len(runs)), *cells, *_tested(tests.get(name)))
    return shown


def over(runs: dict[int, collect.Run], key: str) -> Mean | None:
    """Return the mean of a number over seeds."""
    return mean([run.metrics[key] for run in runs.values() if key in run.metrics])


def versus(found: dict[str, dict[int, collect.Run]]) -> dict[str, Pairs]:
    """Return each method's top-1 against that of plain."""
    top1 = {
        name: {seed: run.metrics[COLUMNS["top-1"]] for seed, run in runs.items()}
        for name, runs in found.items()
    }
    tests = {name: paired(its, top1["plain"]) for name, its in top1.items() if name != "plain"}
    holm(list(tests.values()))
    return tests


def _told(told: Mean | None) -> str:
    if told is None:
        return ""
    return f"{told.mean:.2f}" + (f" ± {told.half:.2f}" if told.half is not None else "")


def _tested(pairs: Pairs | None) -> tuple[str, str]:
    if pairs is None or pairs.difference is None or pairs.high is None:
        return "", ""
    half = pairs.high - pairs.difference
    p = "" if pairs.p_holm is None else f"{pairs.p_holm:.3f}"
    return f"{pairs.difference:+.2f} ± {half:.2f}, {pairs.verdict}", p


def draw(found: dict[str, dict[int, collect.Run]]) -> plt.Figure:
    """Draw top-1 of each method, each seed a dot, its mean a bar."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    for place, runs in enumerate(found.values()):
        top1 = [run.metrics[COLUMNS["top-1"]] for run in runs.values()]
        axis.plot([place] * len(top1), top1, "o", ms=4, alpha=0.6, color="#3a6ea5")
        axis.hlines(sum(top1) / len(top1), place - 0.25, place + 0.25, color="#222222")
    axis.set_xticks(range(len(found)), list(found))
    axis.set_ylabel("top-1, fused, %")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def report(found: dict[str, dict[int, collect.Run]]) -> dict[str, Any]:
    """Return each run's numbers, and the tests."""
    return {
        "plain_epochs": EPOCHS,
        "images": SIZES,
        "settings": SETTINGS,
        "runs": [
            {"method": name, "seed": seed, "command": run.command}
            | {column: run.metrics.get(key) for column, key in COLUMNS.items()}
            for name, runs in found.items()
            for seed, run in sorted(runs.items())
        ],
        "against plain": {name: pairs.__dict__ for name, pairs in versus(found).items()},
    }


if __name__ == "__main__":
    sys.exit(main())
