"""Measure where longer steps would help: the last step against the next gradient.

    python -m benchmarks.growth_study.alignment        # some minutes; writes alignment.json

A linear branch makes steps longer in the directions that it can represent. That helps where the
last step D of a kernel agrees with the gradient G of the next batch, i.e. where the cosine of
P_b(D) and P_b(G) is above zero. It is measured by layer, branch and epoch, at each step of plain
trainings of the study.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import PUBLISHED_BRANCHES, RESULTS, evidence
from benchmarks.growth_study import data
from benchmarks.growth_study.shelf import Run, Shelf
from benchmarks.growth_study.training import Size, Training, batches
from dyrep.block import fitting
from dyrep.geometry import Geometry
from dyrep.promise import gains
from pipeline.display import exits
from pipeline.display.errors import DONE

RATES = (0.0125, 0.05, 0.1)
ALL = 1e6  # a strength beside which the steps of the strengths are negligible


class Watch:
    """Sums <P_b(D), P_b(G)>, |P_b(D)|^2 and |P_b(G)|^2 for each conv and branch."""

    def __init__(self, model: nn.Module) -> None:
        self.convs = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
        }
        self.before: dict[str, Tensor] = {}
        self.sums: dict[tuple[str, str], Tensor] = defaultdict(lambda: torch.zeros(3))

    @torch.no_grad()
    def __call__(self) -> None:
        """Read the current gradients, before the optimizer uses them."""
        for path, conv in self.convs.items():
            assert conv.weight.grad is not None
            if path in self.before:
                moved, gradient = self.before[path] - conv.weight, conv.weight.grad
                for name in _branches(conv):
                    pairs = ((moved, gradient), (moved, moved), (gradient, gradient))
                    found = [gains(*pair, Geometry.of(conv), [name], ALL)[0] for pair in pairs]
                    self.sums[path, name] += torch.stack(found) / ALL**2
            self.before[path] = conv.weight.clone()

    def cosines(self) -> dict[str, dict[str, float]]:
        """Return the cosine of each conv and branch since the last call."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for (path, name), (both, moved, gradient) in self.sums.items():
            found[path][name] = round((both / (moved * gradient).sqrt()).item(), 4)
        self.sums.clear()
        return dict(found)


def _branches(conv: nn.Conv2d) -> list[str]:
    return [name for name in fitting(conv, PUBLISHED_BRANCHES) if name not in ("kxk", "identity")]


def watched(run: Run, images: data.Images, size: Size, shelf: Shelf) -> list[dict]:
    """Return the cosines of each epoch of a training."""
    training = Training(run, images, size, shelf)
    watch = Watch(training.model)
    training.optimizer.register_step_pre_hook(lambda *_: watch())
    epoch, found = size.train // size.batch, []
    for batch, labels in batches(images, size.batch, training.order):
        training.step(batch, labels)
        if training.steps % epoch == 0:
            found.append(watch.cosines())
            values = [value for layer in found[-1].values() for value in layer.values()]
            above = sum(value > 0 for value in values)
            print(f"rate {run.rate:g}, epoch {len(found)}: {above} of {len(values)} above zero")
        if training.progress >= 1:
            return found
    raise AssertionError("batches never end")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "growth_study", metavar="DIR")
    parser.add_argument("--data", type=Path, default=data.DEBIAN, metavar="DIR")
    options = parser.parse_args(arguments)
    return exits.ending(lambda: work(options.results, options.data, Size()))


def work(results: Path, folder: Path, size: Size) -> int:
    """Watch a training at each rate and write the cosines."""
    torch.set_num_threads(1)
    images, shelf = data.read(folder, size.train, size.test), Shelf(results)
    runs = [Run("deep", "plain_identity", rate, seed=0) for rate in RATES]
    rows = [{"rate": run.rate, "epochs": watched(run, images, size, shelf)} for run in runs]
    evidence.write(results / "alignment.json", {"cosines": rows})
    return DONE


if __name__ == "__main__":
    sys.exit(main())
