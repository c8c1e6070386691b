"""Measure the cost of fusing, and the errors of fused networks and exported files.

Every convolution that can grow gets all branches, with random statistics and weights like those of
a trained network. Memory is the peak of the resident pages beyond those before, divided by the size
of the expanded network. An error is the largest difference divided by the largest score: of fused
and unfused network in float64 and in float32, and of each exported file and the fused network in
float32. Each file is loaded in a process of its own.

    python -m benchmarks.fuse --json benchmarks/results/fuse.json
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import dyrep
from benchmarks import evidence
from dyrep.fusion import fold_norms, plain_state
from dyrep.proof import relative_error
from pipeline.records import environment
from pipeline.stages import earlier
from pipeline.stages.export.formats import Source
from pipeline.stages.export.write import write
from pipeline.stages.timing import memory

NETWORKS = ("resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "densenet121", "regnet_y_400mf")
ALLOWED = {"float64": 1e-9, "float32": 1e-4, "pt2": 1e-4, "onnx": 1e-4}
IMAGES, SIDE = 16, 64
# glibc keeps freed memory in pieces of up to 32 MiB; with this variable only used memory counts
GIVE_BACK = "MALLOC_MMAP_THRESHOLD_"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="of torchvision")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median time is taken")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if GIVE_BACK not in os.environ:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.fuse", *sys.argv[1:]],
            {**os.environ, GIVE_BACK: str(2**16)},
        )
    rows = [measure(name, options.rounds) for name in track(options.networks, "networks")]
    report = {"device": environment.device(), "threads": torch.get_num_threads(), "rows": rows}
    report["holds"] = all(
        row["errors"][kind] <= limit for row in rows for kind, limit in ALLOWED.items()
    ) and not any(row["flips"] for row in rows)
    show(report)
    if options.json:
        evidence.write(options.json, report)
    return 0 if report["holds"] else 1


@torch.no_grad()
def measure(name: str, rounds: int) -> dict:
    """Expand, fuse, compare and export one network."""
    torch.manual_seed(0)
    build = torchvision.models.get_model
    model = build(name, weights=None).eval()
    dyrep.expand(model, branches=dyrep.ALL_BRANCHES)
    randomise(model)
    size = sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) / memory.MIB
    peaks, seconds = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        peaks.append(memory.peak(lambda: dyrep.fuse(model), torch.device("cpu")))
        seconds.append(time.perf_counter() - start)
    images = torch.randn(IMAGES, 3, SIDE, SIDE)
    plain = build(name, weights=None).eval()
    exact = dyrep.fuse(model.double(), inputs=images)
    state = plain_state(exact, plain.double(), images.double())
    deployed = earlier.load_folded(plain, state)
    fold_norms(deployed, images.double())
    errors = {"float64": relative_error(model(images.double()), deployed(images.double()))}
    model.float(), deployed.float()
    expected, actual = model(images), deployed(images)
    errors["float32"] = relative_error(expected, actual)
    source = Source(network=deployed, images=images[:1], card="{}", opset=18)
    flips = int((expected.argmax(1) != actual.argmax(1)).sum())
    with tempfile.TemporaryDirectory() as folder:
        for kind, outcome in write(source, Path(folder), ["pt2", "onnx"], images):
            errors[kind] = outcome.get("max_rel_error", float("nan"))
            flips += outcome.get("flips", 0)
    return {
        "network": name,
        "blocks": len(dyrep.block.blocks(model)),
        "mib": size,
        "seconds": statistics.median(seconds),
        "peak_over_model": None if None in peaks else max(peaks) / size,
        "errors": errors,
        "flips": flips,
        "strict": set(state) == set(build(name, weights=None).state_dict()),
    }


def randomise(model: nn.Module) -> None:
    """Give every batch norm random statistics and weights like those of a trained one."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, 0, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight, 0.9, 0.1)
            nn.init.normal_(part.bias, 0, 0.1)


def show(report: dict) -> None:
    """Print a line per network."""
    table = Table("network", "blocks", "MiB", "fuse s", "peak / model", *ALLOWED, "keys", box=None)
    for row in report["rows"]:
        peak = row["peak_over_model"]
        table.add_row(
            row["network"], str(row["blocks"]), f"{row['mib']:.0f}", f"{row['seconds']:.1f}",
            "?" if peak is None else f"{peak:.1f}",
            *(f"{row['errors'][kind]:.1e}" for kind in ALLOWED),
            "its own" if row["strict"] else "and biases",
        )  # fmt: skip
    Console(width=120).print(table)
    flips = sum(row["flips"] for row in report["rows"])
    print(f"{'all within what is allowed' if report['holds'] else 'NOT within'}; {flips} flips")


if __name__ == "__main__":
    sys.exit(main())
