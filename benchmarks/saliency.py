"""Measure whether a saliency score ranks the layers by what growing them gains.

For each seed a small VGG learns the digits for a while; the scores are summed over its last epoch.
Then, from this one state, training goes on once as it is and once for each layer with that layer
grown, over the same batches. What a layer gained is the training loss without growing minus the
training loss with it, both averaged over the epochs that follow. The table shows Spearman's rank
correlation of each score with the gain, mean and standard deviation over seeds.

`repeat` is the correlation between the gains of two single orders of the batches: how noisy a gain
is before averaging. The scores are compared with the mean over all orders.

    python -m benchmarks.saliency --seeds 5 --repeats 3 --json saliency.json
"""

import argparse
import copy
import itertools
import json
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

import dyrep
from dyrep import expansion, surgery
from dyrep.saliency import SCORES, Saliency
from pipeline.models import vgg

WIDTHS = [[16, 16], [32, 32], [64, 64]]
BATCH = 64
WARM_EPOCHS = 3
EPOCHS = 2  # that follow the growth


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="orders of the batches per seed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = [measure(seed, options.repeats) for seed in track(range(options.seeds), "seeds")]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "seeds": rows}, indent=2))


def measure(seed: int, repeats: int) -> dict[str, object]:
    """Return the scores and the gains of every layer, and their rank correlations."""
    torch.manual_seed(seed)
    images, labels = digits()
    model = vgg(WIDTHS, 10)
    optimizer = sgd(model)
    layers = dict(expansion.convs(model))
    for epoch in range(WARM_EPOCHS):
        scores = {name: Saliency(name) for name in SCORES}
        for score in scores.values():
            score.watch(layers)
        train(model, optimizer, images, labels, order=1000 * seed + epoch, watching=scores.values())
    generator = torch.Generator().manual_seed(seed)
    ranked = {name: dict(score.ranking(generator)) for name, score in scores.items()}
    gains = [gain(model, optimizer, images, labels, 1000 * seed + 100 * r) for r in range(repeats)]
    mean_gain = [statistics.fmean(values) for values in zip(*gains, strict=True)]
    correlations = {
        name: rank_correlation([score[path] for path in layers], mean_gain)
        for name, score in ranked.items()
    }
    pairs = [rank_correlation(a, b) for a, b in itertools.combinations(gains, 2)]
    return {
        "seed": seed,
        "layers": list(layers),
        "scores": ranked,
        "gains": gains,
        "correlations": correlations,
        "repeat": statistics.fmean(pairs) if pairs else None,
    }


def gain(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, order: int
) -> list[float]:
    """Return by how much growing each layer in turn lowers the loss of the epochs that follow."""
    without = go_on(model, optimizer, images, labels, order, path=None)
    paths = [path for path, _ in expansion.convs(model)]
    return [without - go_on(model, optimizer, images, labels, order, path) for path in paths]


def go_on(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    order: int,
    path: str | None,
) -> float:
    """Train a copy, with the layer at `path` grown; return its mean training loss."""
    model = copy.deepcopy(model)
    state = optimizer.state_dict()
    optimizer = sgd(model)
    optimizer.load_state_dict(copy.deepcopy(state))
    if path:
        generator = torch.Generator().manual_seed(order)
        calibration = list(images.split(BATCH))[:16]
        expansion.grow(model, path, dyrep.ALL_BRANCHES, calibration, generator)
        surgery.follow(optimizer, model)
    losses = [
        train(model, optimizer, images, labels, order=order + epoch, watching=())
        for epoch in range(10, 10 + EPOCHS)
    ]
    return statistics.fmean(losses)


def train(model, optimizer, images, labels, order, watching) -> float:
    """Train one epoch, its batches drawn by `order`; return the mean loss."""
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
    """Return the optimizer of every training here."""
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Return Spearman's rho."""
    return float(spearmanr(a, b).statistic)


def show(rows: list[dict]) -> None:
    """Print the table."""
    table = Table("score", "rank correlation with the gain", "each seed")
    columns = {name: [row["correlations"][name] for row in rows] for name in SCORES}
    columns["repeat"] = [row["repeat"] for row in rows if row["repeat"] is not None]
    for name, values in columns.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.fmean(values) if values else float("nan")
        table.add_row(name, f"{mean:+.2f} ± {spread:.2f}", " ".join(f"{v:+.2f}" for v in values))
    Console().print(table)


if __name__ == "__main__":
    main()
