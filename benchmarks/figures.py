"""Draw the figures of docs/ from `benchmarks/results/` and from the library itself.

    python -m benchmarks.figures               # all; train_error is measured again: slow
    python -m benchmarks.figures block growth  # these

Each figure NAME is written to docs/figures/NAME.svg.
"""

import argparse
import json
import statistics

import matplotlib

matplotlib.use("svg")
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch
from torch import nn

from benchmarks import PROJECT, PUBLISHED_BRANCHES, RESULTS
from benchmarks.growth_study.arms import ARMS
from benchmarks.growth_study.networks import NETWORKS
from benchmarks.growth_study.plan import JUDGING
from benchmarks.growth_study.report import ENOUGH, judge
from benchmarks.growth_study.shelf import Shelf
from dyrep import calibration, expansion
from dyrep.proof import relative_error

FIGURES = PROJECT / "docs" / "figures"
CHAINS = {
    "kxk": ["conv k×k", "BN"],
    "1x1": ["conv 1×1", "BN"],
    "1x1_kxk": ["conv 1×1", "BN − border", "conv k×k", "BN"],
    "1x1_avg": ["conv 1×1", "BN − border", "average", "BN"],
    "1xk": ["conv 1×k", "BN"],
    "kx1": ["conv k×1", "BN"],
    "identity": ["BN"],
}
WORDS = {name: arm.what for name, arm in ARMS.items()} | {
    "plain_identity": "identity\nstart", "ours": "and grown",
    "ours_random": "and grown\nat random", "ours_plain_start": "only grown",
    "ours_structure": "grown from\nthe start", "linear": "linear", "linear_cut": "linear,\ncut",
    "linear_steps": "linear,\nequal steps", "plain_x2": "plain,\ncost x 2",
    "plain_x3": "plain,\ncost x 3", "dbb_steps": "DBB,\nequal steps", "dyrep": "DyRep",
    "dyrep_budget": "DyRep,\nbudget", "dyrep_linear": "DyRep,\nlinear",
}  # fmt: skip
STYLE = {
    "svg.hashsalt": "dyrep",  # so that equal numbers give equal files
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def main() -> None:
    drawn = {draw.__name__: draw for draw in (block, saliency, cost, train_error, growth)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", choices=drawn, default=list(drawn), metavar="NAME",
        help=f"of {', '.join(drawn)}; all of them if none is given",
    )  # fmt: skip
    names = parser.parse_args().names
    FIGURES.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name in names:
            figure = drawn[name]()
            path = FIGURES / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)
            print(path)


def block() -> plt.Figure:
    """Draw the branches between one input and one output."""
    figure, axes = plt.subplots(figsize=(8, 4))
    axes.axis("off")
    for row, (name, parts) in enumerate(CHAINS.items()):
        y = -row
        axes.text(1.2, y, name, ha="right", va="center", family="monospace")
        for index, part in enumerate(parts):
            x = 2 + 2.1 * index
            box = FancyBboxPatch(
                (x, y - 0.28), 1.7, 0.56, boxstyle="round,pad=0.04", fc="#e8eef7", ec="#44597a"
            )
            axes.add_patch(box)
            axes.text(x + 0.85, y, part, ha="center", va="center", fontsize=9)
        end = 2 + 2.1 * len(parts) - 0.35
        axes.plot([end, 10.6], [y, y], color="#44597a", lw=1)
        axes.plot([1.5, 1.95], [y, y], color="#44597a", lw=1)
    for x in (1.5, 10.6):
        axes.plot([x, x], [0, 1 - len(CHAINS)], color="#44597a", lw=1)
    middle = (1 - len(CHAINS)) / 2
    axes.text(-1.4, middle, "x", ha="center", va="center", fontsize=13)
    axes.text(11, middle, "Σ  =  one conv", ha="left", va="center", fontsize=11)
    axes.set(xlim=(-2, 13), ylim=(-len(CHAINS) + 0.4, 0.6))
    return figure


def saliency() -> plt.Figure:
    """Draw the rank correlation of each score with the measured gain, a dot per seed."""
    rows = json.loads((RESULTS / "saliency.json").read_text())["seeds"]
    values = {n: [row["correlations"][n] for row in rows] for n in rows[0]["correlations"]}
    names = sorted(values, key=lambda name: statistics.fmean(values[name]))
    figure, axes = plt.subplots(figsize=(6, 2.8))
    axes.axvline(0, color="#999999", lw=0.8)
    for row, name in enumerate(names):
        axes.plot(values[name], [row] * len(rows), "o", color="#44597a", alpha=0.45, ms=5)
        axes.plot(statistics.fmean(values[name]), row, "|", color="#b3392f", ms=18, mew=2.5)
    axes.set_yticks(range(len(names)), names, family="monospace")
    axes.set(xlim=(-1, 1), xlabel="Spearman's ρ with the loss decrease of growing (red: mean)")
    return figure


def cost() -> plt.Figure:
    """Draw time and memory of a step relative to the plain network, beside the published code."""
    rows = json.loads((RESULTS / "train_step.json").read_text())["rows"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = plt.subplots(2, len(networks), figsize=(8, 4.6), sharex=True, squeeze=False)
    for (top, bottom), network in zip(axes.T, networks, strict=True):
        grown = [row for row in rows if row["network"] == network and row["point"] != "plain"]
        theirs = [row["memory_to_plain"] / row["memory_to_reference"] for row in grown]
        _bars(top, [row["reference_time_to_plain"] for row in grown], grown, "time_to_plain")
        _bars(bottom, theirs, grown, "memory_to_plain")
        top.set_title(network)
        bottom.set_xticks(range(len(grown)), [row["point"] for row in grown])
        bottom.set_xlabel("DBB or all branches everywhere, or growths")
    axes[0][0].set_ylabel("time / plain")
    axes[1][0].set_ylabel("peak memory / plain")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def _bars(axis: plt.Axes, published: list[float], grown: list[dict], key: str) -> None:
    """Draw three bars at each point: the published blocks, ours, and linear ones."""
    bars = [
        ("published", "#c9ced6", published),
        ("batchnorm", "#44597a", [row[key] for row in grown]),
        ("linear", "#d98b3a", [row[f"linear_{key}"] for row in grown]),
    ]
    for number, (label, colour, heights) in enumerate(bars):
        at = [place + 0.26 * (number - 1) for place in range(len(grown))]
        axis.bar(at, heights, 0.25, color=colour, label=label)


def train_error() -> plt.Figure:
    """Draw the change by growing in train mode, over the positions per channel of a batch."""
    figure, axes = plt.subplots(figsize=(6, 2.8))
    counts = [2**power for power in range(1, 8)]
    for norm, label in ((True, "batch norm behind"), (False, "no batch norm behind")):
        errors = [[change(norm, count, seed) for seed in range(5)] for count in counts]
        positions = [256 * count for count in counts]
        axes.plot(positions, [statistics.median(e) for e in errors], "o-", label=label)
        axes.fill_between(positions, [min(e) for e in errors], [max(e) for e in errors], alpha=0.2)
    axes.axhline(1e-3, color="#999999", lw=0.8, ls="--")
    axes.axvline(4096, color="#999999", lw=0.8, ls="--")
    axes.set(xscale="log", yscale="log", xlabel="positions per channel", ylabel="relative error")
    axes.legend(frameon=False)
    return figure


def growth() -> plt.Figure:
    """Draw accuracy at equal cost, a dot per seed; lines join equal seeds; the best arm first."""
    rows = Shelf(RESULTS / "growth_study").rows()
    panels = [
        sorted(
            (j for j in judge(rows, network, JUDGING) if j.accuracy.n >= ENOUGH),
            key=lambda judged: -judged.accuracy.mean,
        )
        for network in NETWORKS
    ]
    shape = {"width_ratios": [len(found) for found in panels]}
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.4), sharey=True, gridspec_kw=shape)
    for axis, network, found in zip(axes, NETWORKS, panels, strict=True):
        for seed in JUDGING:
            there = [place for place, judged in enumerate(found) if seed in judged.rows]
            line = [found[place].rows[seed]["accuracy"] for place in there]
            axis.plot(there, line, "o-", color="#44597a", ms=4, lw=0.6, alpha=0.5)
        for place, judged in enumerate(found):
            axis.hlines(judged.accuracy.mean, place - 0.2, place + 0.2, color="#c0392b", lw=2)
        labels = [f"{WORDS[judged.arm]}\nrate {judged.rate:g}" for judged in found]
        axis.set_xticks(range(len(found)), labels, fontsize=8)
        axis.set_xlim(-0.5, len(found) - 0.5)
        axis.set_title({"deep": "19 convs without skips", "resnet": "small ResNet"}[network])
    axes[0].set_ylabel("% of 10,000 test images")
    return figure


@torch.no_grad()
def change(norm: bool, count: int, seed: int) -> float:
    """Return the relative change of a small network in train mode when its second conv grows."""
    torch.manual_seed(seed)
    tail = [nn.BatchNorm2d(16)] if norm else []
    head = [nn.Conv2d(3, 16, 3, padding=1), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU()]
    model = nn.Sequential(*head, nn.Conv2d(16, 16, 3, padding=1), *tail).double()
    images = torch.randn(20 * 64 + count, 3, 16, 16, dtype=torch.float64)
    batch, rest = images[:count], list(images[count:].split(64))
    with calibration.batch_statistics(model):
        before = model(batch)
    path = str(len(head))
    expansion.grow(model, path, PUBLISHED_BRANCHES, rest, torch.Generator().manual_seed(seed))
    with calibration.batch_statistics(model):
        return relative_error(before, model(batch))


if __name__ == "__main__":
    main()
