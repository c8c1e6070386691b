r"""Compare all methods at equal cost, by top-1 and beyond.

The study is a sweep of the pipeline over methods and seeds on a part of Fashion-MNIST. Each
training may cost as much as some epochs of the plain network (`train.budget.plain_epochs`). Then
the fused networks are tested on the test images, on the same images blurred, noisy and compressed,
in int8, and for the calibration of their probabilities.

    python -m benchmarks.studies.methods FOLDER --json benchmarks/results/studies/methods.json
    python -m benchmarks.studies.methods LARGE --images 60000 10000 --epochs 30 \
      --words model=resnet18

A second call continues where the first was stopped. A run of the small size takes about a minute of
one core; each size has a folder of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib import pyplot as plt
from rich.console import Console

from benchmarks import evidence
from benchmarks.growth_study.data import DEBIAN
from benchmarks.studies import common
from benchmarks.studies.common import TOP1, Found
from pipeline.compare import collect
from pipeline.display import exits
from pipeline.display.errors import DONE, UserError

GROUP = "methods"
METHODS = ("plain", "repvgg", "acb", "dbb", "orepa", "dyrep", "grow")
STARTED = "plain, identity"  # the default start of grow, without growing
EPOCHS = 6  # budget in epochs of the plain network
SMALL = "model.widths=[[16,16],[32,32],[64,64]]"
SETTINGS = (
    *common.IMAGES,
    "stage.run=[prep,train,fuse,eval]",
    "fuse.exports=[int8]",
    "eval.shifts=[blur,noise,jpeg]",
)
ERROR = "calibration error"
COLUMNS = {
    "top-1": TOP1,
    "blur": "eval/fused/blur/top1",
    "noise": "eval/fused/noise/top1",
    "jpeg": "eval/fused/jpeg/top1",
    "int8": "eval/int8/top1",
    ERROR: "eval/fused/ece",
}
"""Numbers that are tested against plain; all in %."""
COSTS = {
    "top-1": TOP1,
    "steps": "train/steps",
    "cost, plain steps": "train/plain_steps",
    "of that, changing and measuring": "train/adjusting_steps",
    "last step, plain steps": "train/step_cost",
    "seconds": common.SECONDS,
}
FUSED = {
    "largest relative error of fusing": "fuse/max_rel_error",
    "predictions changed": "fuse/flips",
    "agreement, fused and unfused": "eval/agreement",
    "agreement, int8 and fused": "eval/int8/agreement",
}


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--images", nargs=2, type=int, default=common.SIZES, metavar=("TRAIN", "TEST"),
        help="of Fashion-MNIST (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="of plain: the budget (default: %(default)s)"
    )
    parser.add_argument(
        "--words", nargs="+", default=[SMALL], metavar="KEY=VALUE",
        help="of each launch: network, batch, cluster (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    return exits.ending(lambda: study(options))


def study(options: argparse.Namespace) -> int:
    """Launch the unfinished runs, and report the finished ones.

    Raises:
        UserError: no run of plain, the baseline of all tests, is finished.
    """
    folder = options.folder.resolve()
    if not options.report:
        sweep(folder, options)
    runs = common.finished(folder, GROUP)
    found = {name: of for name in (*METHODS, STARTED) if (of := named(runs, name))}
    if "plain" not in found:
        raise UserError("no run of method=plain is finished yet")
    for columns in (COLUMNS, COSTS):
        title = f"each for what {options.epochs} epochs of plain cost"
        Console(width=180).print(common.table(found, columns, "plain", title))
    if options.json:
        evidence.write(options.json, report(found, options))
    if options.figure:
        common.save(draw(found), options.figure)
    return DONE


def settings(options: argparse.Namespace) -> list[str]:
    """Return the settings that all launches have in common."""
    return [*SETTINGS, *options.words, f"train.budget.plain_epochs={options.epochs}"]


def sweep(folder: Path, options: argparse.Namespace) -> None:
    """Launch the unfinished runs, with the output of the launches."""
    common.write_part(DEBIAN, folder / "data", options.images)
    for methods in (["method=" + ",".join(METHODS)], ["method=plain", "method.start=identity"]):
        words = ["-m", *methods, f"seed=range({options.seeds})", f"group={GROUP}"]
        common.launch(folder, [*words, *settings(options)])


def named(runs: Iterable[collect.Run], name: str) -> dict[int, collect.Run]:
    """Return the runs of a method by seed."""
    method = "plain" if name == STARTED else name
    start = "identity" if name in (STARTED, "grow") else "drawn"
    return {
        run.seed: run
        for run in runs
        if run.settings["method.name"] == method
        and run.settings.get("method.start", "drawn") == start
    }


def draw(found: Found) -> plt.Figure:
    """Draw top-1 of each method."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    common.dots(axis, found, TOP1)
    axis.set_ylabel("top-1, fused, %")
    return figure


def report(found: Found, options: argparse.Namespace) -> dict[str, object]:
    """Return each run's numbers, and the tests, corrected within each column."""
    return {
        "images": options.images,
        "settings": settings(options),
        "runs": common.rows(found, COLUMNS | COSTS | FUSED),
        "against plain": {
            column: common.kept(common.versus(found, "plain", key), less=column == ERROR)
            for column, key in COLUMNS.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
