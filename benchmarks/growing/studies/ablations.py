"""Measure the effect of each part of growing: one setting at a time, several seeds.

Each axis consists of runs of the pipeline. The other variants of an axis are tested against its
first one, paired by seed. All variants make the same number of steps; their cost is reported, too.
In a training as short as this, growing itself costs as much as many steps, so results at equal
budgets would show little else.

    python -m benchmarks.studies.ablations FOLDER --json benchmarks/results/studies/ablations.json
    python -m benchmarks.studies.ablations FOLDER --axes score form
    python -m benchmarks.studies.ablations FOLDER --dry-run

A second call continues where the first was stopped. A run takes about a minute of one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from pipeline.records import rundir

GROUP = "ablations"
PANELS = 3  # panels of the figure that are side by side
EPOCHS = 4
SETTINGS = (
    *common.IMAGES,
    "model.widths=[[16,16],[32,32],[64,64]]",
    f"train.epochs={EPOCHS}",
    "stage.run=[prep,train,fuse,eval]",
    "fuse.exports=[]",
)
COLUMNS = {
    "top-1": TOP1,
    "cost, plain steps": "train/plain_steps",
    "of that, growing": "train/adjusting_steps",
    "grown": "train/grown",
    "cut": "train/cut",
}
FINISHED = ("model.pretrained={run}", "train.lr=0.02")


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        words: words of the launch; `{run}` is the directory of the run of `after` with equal seed.
        after: the variant with which this one begins.
    """

    words: tuple[str, ...]
    after: str | None = None


def _dyrep(*words: str) -> Variant:
    """Return the published algorithm, growing once an epoch in the first half, with `words`."""
    settings = {"method.adjust_interval": "1", "method.last_adjust_epoch": "2"}
    settings |= dict(word.split("=", 1) for word in words)
    return Variant(("method=dyrep", *(f"{key}={value}" for key, value in settings.items())))


def _random(*words: str) -> Variant:
    """Return `method=grow` with random choice, which grows wherever it can."""
    return Variant(("method=grow", "method.choose=random", *words))


VARIANTS = {
    "plain": Variant(("method=plain",)),
    "dyrep": _dyrep(),
    "snip": _dyrep("method.saliency=snip"),
    "grad_norm": _dyrep("method.saliency=grad_norm"),
    "synflow": _dyrep("method.saliency=synflow"),
    "gain_per_flop": _dyrep("method.saliency=gain_per_flop"),
    "random": _dyrep("method.saliency=random"),
    "identity": Variant(("method=plain", "method.start=identity")),
    "priced": Variant(("method=grow",)),
    "random branches": _random(),
    "every 2": _dyrep("method.adjust_interval=2"),
    "epoch 1": _dyrep("method.last_adjust_epoch=1"),
    "epochs 1 to 3": _dyrep("method.last_adjust_epoch=3"),
    "at most 1.25": _dyrep("method.max_cost=1.25"),
    "at most 1.5": _dyrep("method.max_cost=1.5"),
    "at most 2": _dyrep("method.max_cost=2"),
    "no cutting": _dyrep("method.cut_ratio=0"),
    "much cutting": _dyrep("method.cut_ratio=0.5"),
    "strength 0.25": _random("method.strength=0.25"),
    "strength 1": _random("method.strength=1"),
    "linear": _dyrep("method.form=linear"),
    "trained on": Variant(("method=plain", *FINISHED), "plain"),
    "then grown": Variant((*_dyrep().words, *FINISHED), "plain"),
    "then linear": Variant((*_random().words, *FINISHED), "plain"),
    "from scratch": Variant(("method=structure", "method.structure={run}"), "dyrep"),
}
AXES = {
    "score": ("dyrep", "snip", "grad_norm", "synflow", "gain_per_flop", "random", "plain"),
    "choice": ("identity", "priced", "random branches"),
    "form": ("dyrep", "linear"),
    "budget": ("dyrep", "at most 1.25", "at most 1.5", "at most 2"),
    "cutting": ("dyrep", "no cutting", "much cutting"),
    "structure": ("dyrep", "from scratch"),
    "interval": ("dyrep", "every 2"),
    "window": ("dyrep", "epoch 1", "epochs 1 to 3"),
    "strength": ("random branches", "strength 0.25", "strength 1"),
    "finished": ("trained on", "then grown", "then linear"),
}
"""The compared axes, most informative first; the first variant of an axis is its baseline."""


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS",
                        help=f"of {', '.join(AXES)} (default: all)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the launches")
    options = parser.parse_args(arguments)
    return exits.ending(lambda: study(options))


def study(options: argparse.Namespace) -> int:
    """Launch the unfinished runs, and report the finished ones.

    Raises:
        UserError: no axis has a finished run of its baseline.
    """
    folder = options.folder.resolve()
    if options.dry_run:
        for words in launches(options.axes, options.seeds, folder):
            print(*words)
        return DONE
    if not options.report:
        common.write_part(DEBIAN, folder / "data")
        for words in launches(options.axes, options.seeds, folder):
            common.launch(folder, words)
    runs = {run.name: run for run in common.finished(folder, GROUP)}
    found = {axis: its for axis in options.axes if (its := of_axis(axis, runs))}
    if not found:
        raise UserError(f"no run of the baseline of {', '.join(options.axes)} is finished yet")
    for axis, its in found.items():
        title = f"{axis}: {EPOCHS} epochs each"
        Console(width=150).print(common.table(its, COLUMNS, AXES[axis][0], title))
    if options.json:
        evidence.write(options.json, report(found))
    if options.figure:
        common.save(draw(found), options.figure)
    return DONE


def launches(axes: Iterable[str], seeds: int, folder: Path) -> Iterator[list[str]]:
    """Yield the words of each launch, one per run; runs with which others begin come first."""
    for name in ordered(axes):
        variant = VARIANTS[name]
        for seed in range(seeds):
            run = rundir.run_dir(folder / "outputs", run_name(variant.after or name, seed))
            words = [word.format(run=run) for word in variant.words]
            yield [
                *words,
                f"seed={seed}",
                f"name={run_name(name, seed)}",
                f"group={GROUP}",
                *SETTINGS,
            ]


def ordered(axes: Iterable[str]) -> list[str]:
    """Return the variants of some axes, each once; those with which others begin come first."""
    names = [name for axis in axes for name in AXES[axis]]
    pairs = [(VARIANTS[name].after, name) for name in names]
    return list(dict.fromkeys(name for pair in pairs for name in pair if name))


def run_name(variant: str, seed: int) -> str:
    """Return the name of a run."""
    return f"{variant.replace(' ', '-')}-s{seed}"


def of_axis(axis: str, runs: Mapping[str, collect.Run]) -> Found:
    """Return the runs of an axis, by variant and seed; nothing if its baseline is missing."""
    found: Found = {}
    for name in AXES[axis]:
        its = [run for run in runs.values() if run.name == run_name(name, run.seed)]
        if its:
            found[name] = {run.seed: run for run in its}
    return found if AXES[axis][0] in found else {}


def draw(found: Mapping[str, Found]) -> plt.Figure:
    """Draw top-1 of each variant, a panel per axis, all on the same scale."""
    rows = -(-len(found) // PANELS)
    figure, axes = plt.subplots(
        rows, PANELS, figsize=(4 * PANELS, 3 * rows), sharey=True, squeeze=False
    )
    for axis, name in zip(axes.flat, found, strict=False):
        common.dots(axis, found[name], TOP1)
        axis.set_title(name, fontsize=9)
        axis.tick_params(axis="x", rotation=30, labelsize=7)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    figure.supylabel("top-1, %")
    figure.tight_layout()
    return figure


def report(found: Mapping[str, Found]) -> dict[str, object]:
    """Return each run's numbers and each axis's tests, corrected within each axis."""
    variants = {name: runs for its in found.values() for name, runs in its.items()}
    return {
        "epochs": EPOCHS,
        "images": common.SIZES,
        "settings": SETTINGS,
        "runs": common.rows(variants, COLUMNS),
        "against the first of the axis": {
            axis: common.kept(common.versus(its, AXES[axis][0], TOP1))
            for axis, its in found.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
