"""Compare time and memory of a training step with branches, with published code, and plain.

All implementations have the same weights, growths and batch. The networks are ResNet-18 (CIFAR
stem) and VGG-16: plain, with DBB everywhere, with all seven branches everywhere, and after 4, 8 and
16 growths drawn at random (some of them nested). `linear` has the same branches as linear blocks.
The published code is read from a checkout outside this repository; each of its blocks gets the
weights of ours, and the losses of the first step must agree before anything is measured.

Rounds are paired: in each, the implementations make one step right after the other; a ratio is the
median over rounds. Memory is the peak of a step's allocations (activations, gradients, temporaries;
not weights and momenta, which exist before), read from the allocator by torch.profiler. `watching`
is the share of a step that `DyRep.accumulate()` takes.

    git clone https://github.com/hunto/image_classification_sota ../reference
    python -m benchmarks.train_step --reference ../reference --json train_step.json
"""

import argparse
import copy
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints too much

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dyrep
from benchmarks import PUBLISHED_BRANCHES, evidence
from dyrep import eligible, expansion, surgery
from dyrep.base import Form
from dyrep.block import RepBlock, depth
from pipeline.networks import architectures

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: architectures.from_torchvision("resnet18", small_stem=True, classes=10),
    "vgg16": lambda: architectures.vgg(
        [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3], classes=10
    ),
}
POINTS = ("plain", "dbb", "all", "4", "8", "16")  # branches everywhere, or a number of growths
REFERENCE_NAMES = {
    "1x1": "dbb_1x1",
    "1x1_kxk": "dbb_1x1_kxk",
    "1x1_avg": "dbb_1x1_avg",
    "kxk": "dbb_kxk",
    "1xk": "dbb_1xk",
    "kx1": "dbb_kx1",
    "identity": "dbb_id",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="checkout of the published code"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--points", nargs="+", choices=POINTS, default=POINTS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and growths")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    blocks = load_reference(options.reference) if options.reference else None
    rows = [
        measure(name, point, blocks, options)
        for name, point in track(
            [(n, p) for n in options.networks for p in options.points], "networks"
        )
    ]
    show(rows)
    if options.json:
        machine = {"threads": torch.get_num_threads()}
        settings = {"batch": options.batch, "rounds": options.rounds, "seed": options.seed}
        evidence.write(options.json, {**machine, **settings, "rows": rows})


def measure(name: str, point: str, reference: ModuleType | None, options) -> dict[str, object]:
    """Return the medians of one network at one point of its growth."""
    torch.manual_seed(options.seed)
    images = torch.randn(options.batch, 3, 32, 32)
    labels = torch.randint(0, 10, (options.batch,))
    plain = NETWORKS[name]()
    grown = copy.deepcopy(plain)
    layers = change(grown, point, options.seed)
    networks = {"plain": plain, "ours": grown}
    if layers:
        networks["linear"] = copy.deepcopy(plain)
        change(networks["linear"], point, options.seed, "linear")
    if reference and layers:
        networks["reference"] = as_reference(grown, reference)
    steps = {which: Step(network, images, labels) for which, network in networks.items()}
    losses = {which: step() for which, step in steps.items()}
    if "reference" in losses and abs(losses["ours"] / losses["reference"] - 1) > 1e-3:
        sys.exit(f"{name} {point}: the implementations differ, losses {losses}")
    memory = {which: peak_memory(step) for which, step in steps.items()}
    watching = Watching(copy.deepcopy(grown))
    times: dict[str, list[float]] = {which: [] for which in [*steps, "watching"]}
    for _ in range(options.rounds):
        for which, step in steps.items():
            times[which].append(seconds(step))
        times["watching"].append(seconds(watching))
    return {
        "network": name,
        "point": point,
        "layers": layers,
        "peak_mib": memory,
        "seconds": {which: statistics.median(values) for which, values in times.items()},
        "time_to_reference": ratio(times, "ours", "reference"),
        "time_to_plain": ratio(times, "ours", "plain"),
        "linear_time_to_plain": ratio(times, "linear", "plain"),
        "reference_time_to_plain": ratio(times, "reference", "plain"),
        "watching_share": ratio(times, "watching", "ours"),
        "memory_to_reference": share(memory, "ours", "reference"),
        "memory_to_plain": share(memory, "ours", "plain"),
        "linear_memory_to_plain": share(memory, "linear", "plain"),
    }


class Step:
    """One training step of a network; returns the loss."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model.train(), images, labels
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> float:
        loss = cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class Watching:
    """Measures the additional cost of a step when saliency is watched."""

    def __init__(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.accumulate = dyrep.DyRep(model, branches=PUBLISHED_BRANCHES).accumulate

    def __call__(self) -> None:
        self.accumulate()


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory(run: Callable[[], object]) -> float:
    """Return the peak of allocated memory beyond that before the call, MiB."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        run()
    records = [r for r in profiler.profiler.kineto_results.events() if r.name() == "[memory]"]
    held = peak = 0
    for record in sorted(records, key=lambda r: r.start_ns()):
        held += record.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def ratio(times: dict[str, list[float]], one: str, other: str) -> float | None:
    """Return the median of the paired ratios."""
    if one not in times or other not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def share(memory: dict[str, float], one: str, other: str) -> float | None:
    return memory[one] / memory[other] if one in memory and other in memory else None


def change(model: nn.Module, point: str, seed: int, form: Form = "batchnorm") -> list[str]:
    """Give a network the branches of a point of `POINTS`; return the layers that got some."""
    if point == "plain":
        return []
    if point in ("dbb", "all"):
        branches = dyrep.DBB_BRANCHES if point == "dbb" else PUBLISHED_BRANCHES
        return list(dyrep.expand(model, branches=branches, form=form).grown)
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(int(point)):
        paths = [p for p, _ in eligible.convs(model) if depth(model, p) < expansion.DEEPEST]
        layers.append(paths[int(torch.randint(len(paths), (), generator=generator))])
        names = published_branches(model, layers[-1])
        expansion.place_block(model, layers[-1], names, form == "linear", form)
    return layers


def published_branches(model: nn.Module, path: str) -> Sequence[str]:
    """Return the branches that the published code supports for a conv: fewer if it pads before."""
    as_usual = not path.endswith("1x1_kxk.conv")
    return PUBLISHED_BRANCHES if as_usual else ("kxk", "1x1_kxk", "1x1_avg")


def load_reference(checkout: Path) -> ModuleType:
    """Import the block of the published code, without the other imports of its packages."""
    folder = checkout / "lib" / "models" / "utils" / "dbb"
    if not (folder / "dbb_block.py").exists():
        sys.exit(f"error: no {folder}/dbb_block.py; give a checkout of image_classification_sota")
    package = ModuleType("published")
    package.__path__ = [str(folder)]
    sys.modules["published"] = package
    return importlib.import_module("published.dbb_block")


def as_reference(model: nn.Module, reference: ModuleType) -> nn.Module:
    """Return a copy of a network in which the blocks are those of the published code."""
    model = copy.deepcopy(model)
    for path, block in dyrep.block.outer_blocks(model).items():
        surgery.replace(model, path, published_block(block, reference))
    return model


def published_block(block: RepBlock, reference: ModuleType, padded: bool = False) -> nn.Module:
    """Return the published block with the weights of ours; `padded`: its input is padded."""
    g = block.geometry
    theirs = reference.DiverseBranchBlock(
        g.in_channels, g.out_channels, g.kernel_size[0], stride=g.stride[0], groups=g.groups,
        branches=[int(name in block.names) for name in REFERENCE_NAMES],
        padding=0 if padded else g.padding[0][0],
    )  # fmt: skip
    for name, branch in block.branches.items():
        their = getattr(theirs, REFERENCE_NAMES[name])
        if name == "identity":
            copy_into(their, branch.norm)
        elif name == "1x1_kxk":
            copy_into(their.conv1, branch.reduce)
            copy_into(their.bn1.bn, branch.inner_norm)
            their.conv2 = converted(branch.conv, their.conv2, reference, padded=True)
            copy_into(their.bn2, branch.norm)
        elif name == "1x1_avg":
            copy_into(their.conv, branch.reduce)
            copy_into(their.bn.bn, branch.inner_norm)
            copy_into(their.avgbn, branch.norm)
        else:
            their.conv = converted(branch.conv, their.conv, reference)
            copy_into(their.bn, branch.norm)
    return theirs


def converted(
    conv: nn.Module, their: nn.Module, reference: ModuleType, padded: bool = False
) -> nn.Module:
    """Return the module for the conv in a branch: their conv, or a nested block of theirs."""
    if isinstance(conv, RepBlock):
        return published_block(conv, reference, padded)
    copy_into(their, conv)
    return their


def copy_into(their: nn.Module, ours: nn.Module) -> None:
    """Copy the state of a conv or a norm; a bias that only theirs has is zero."""
    state = ours.state_dict()
    if "bias" in their.state_dict() and "bias" not in state:
        state["bias"] = torch.zeros_like(their.bias)
    their.load_state_dict(state)


def show(rows: Sequence[dict]) -> None:
    """Print the table."""
    table = Table()
    columns = ["network", "branches", "time / reference", "memory / reference", "time / plain"]
    columns += ["reference time / plain", "memory / plain", "linear time / plain"]
    columns += ["linear memory / plain", "watching"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        numbers = ["time_to_reference", "memory_to_reference", "time_to_plain"]
        numbers += ["reference_time_to_plain", "memory_to_plain"]
        numbers += ["linear_time_to_plain", "linear_memory_to_plain"]
        point = row["point"] if not row["point"].isdigit() else f"{row['point']} growths"
        cells = ["—" if row[key] is None else f"{row[key]:.2f}" for key in numbers]
        table.add_row(row["network"], point, *cells, f"{100 * row['watching_share']:.1f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
