"""Measure whether a saliency score ranks the layers by the gain of growing them.

For each seed, a small VGG learns the digits for a while; the scores are summed over its last epoch.
From this state, training continues on one large fixed batch, once unchanged and once for each layer
with that layer grown. The gain of a layer is the loss without the growth minus the loss with it,
averaged over the last third of the steps. One fixed batch leaves only the noise of the new weights.
This matters: with small batches in random order, the gains of two orders hardly correlate.

The table shows Spearman's rank correlation of each score with the gain, mean and standard deviation
over seeds; for `per flop`, score and gain are both divided by the cost of the branches.

    python -m benchmarks.saliency --seeds 8 --json saliency.json
"""

import argparse
import copy
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from benchmarks import PUBLISHED_BRANCHES, evidence
from dyrep import eligible, expansion, surgery
from dyrep.budget import extra_cost, input_shapes
from dyrep.saliency import SCORES, Saliency
from pipeline.networks.architectures import vgg

WIDTHS = [[16] * 3, [32] * 3, [64] * 3]
BATCH = 64
WARM_EPOCHS = 3
IMAGES = 512  # images of the fixed batch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="steps that follow the growth")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = [measure(seed, options.steps) for seed in track(range(options.seeds), "seeds")]
    show(rows)
    if options.json:
        settings = {"steps": options.steps, "widths": WIDTHS}
        evidence.write(options.json, {**settings, "seeds": rows})


def measure(seed: int, steps: int) -> dict[str, object]:
    """Return the scores and the gains of every layer, and their rank correlations."""
    torch.manual_seed(seed)
    images, labels = digits()
    model = vgg(WIDTHS, 10)
    optimizer = sgd(model)
    layers = dict(eligible.convs(model))
    names = [name for name, score in SCORES.items() if not score.per_flop]
    for epoch in range(WARM_EPOCHS):
        scores = {name: Saliency(name) for name in names}
        for score in scores.values():
            score.watch(layers)
        train(model, optimizer, images, labels, order=1000 * seed + epoch, watching=scores.values())
    generator = torch.Generator().manual_seed(seed)
    ranked = {name: dict(score.ranking(generator)) for name, score in scores.items()}
    chosen = torch.randperm(len(images), generator=generator)[:IMAGES]
    batch = images[chosen], labels[chosen]
    without = go_on(model, optimizer, *batch, steps, seed, path=None)
    gains = {path: without - go_on(model, optimizer, *batch, steps, seed, path) for path in layers}
    shapes = input_shapes(model, layers, images)
    flops = {p: extra_cost(model, p, PUBLISHED_BRANCHES, shapes[p]).flops for p in layers}
    return {
        "seed": seed,
        "gains": gains,
        "scores": ranked,
        "extra_flops": flops,
        "correlations": {n: rank_correlation(score, gains) for n, score in ranked.items()},
        "per_flop": {
            n: rank_correlation(divided(score, flops), divided(gains, flops))
            for n, score in ranked.items()
        },
    }


def go_on(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    steps: int,
    seed: int,
    path: str | None,
) -> float:
    """Train a copy, with the layer at `path` grown; return its loss over the last third."""
    model = copy.deepcopy(model).train()
    state = optimizer.state_dict()
    optimizer = sgd(model)
    optimizer.load_state_dict(copy.deepcopy(state))
    if path:
        before = dict(model.named_parameters())
        generator = torch.Generator().manual_seed(seed)
        expansion.grow(model, path, PUBLISHED_BRANCHES, [images], generator)
        surgery.follow(optimizer, model, before)
    losses = []
    for _ in range(steps):
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return statistics.fmean(losses[-steps // 3 :])


def train(model, optimizer, images, labels, order, watching) -> float:
    """Train one epoch, with batches drawn by `order`; return the mean loss."""
    model.train()
    generator = torch.Generator().manual_seed(order)
    losses = []
    for chosen in torch.randperm(len(images), generator=generator).split(BATCH)[:-1]:
        noise = 0.3 * torch.randn(images[chosen].shape, generator=generator)
        loss = cross_entropy(model(images[chosen] + noise), labels[chosen])
        loss.backward()
        for score in watching:
            score.accumulate()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return statistics.fmean(losses)


def digits() -> tuple[Tensor, Tensor]:
    """Return the embedded digits as (1797, 3, 16, 16) and their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return interpolate(images, 16).expand(-1, 3, -1, -1).contiguous(), torch.tensor(data.target)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that all trainings of this benchmark use."""
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def rank_correlation(a: dict[str, float], b: dict[str, float]) -> float:
    """Return Spearman's rho over the layers."""
    return float(spearmanr(list(a.values()), [b[path] for path in a]).statistic)


def divided(values: dict[str, float], by: dict[str, int]) -> dict[str, float]:
    return {path: value / by[path] for path, value in values.items()}


def show(rows: list[dict]) -> None:
    """Print the table, the best score first."""
    table = Table("score", "correlation with the gain", "per flop", "each seed")
    columns = {
        name: [[row[kind][name] for row in rows] for kind in ("correlations", "per_flop")]
        for name in rows[0]["correlations"]
    }
    for name, (values, per_flop) in sorted(
        columns.items(), key=lambda item: -statistics.fmean(item[1][0])
    ):
        cells = [
            f"{statistics.fmean(v):+.2f} ± {statistics.stdev(v) if len(v) > 1 else 0:.2f}"
            for v in (values, per_flop)
        ]
        table.add_row(name, *cells, " ".join(f"{v:+.2f}" for v in values))
    Console().print(table)


if __name__ == "__main__":
    main()
