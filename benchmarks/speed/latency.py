"""Check that the fused network is as fast as the plain one, and that latencies are reproducible.

The benchmark trains a short run, then repeats the latency stage, and runs it once beside a process
that computes on every core. The host of a virtual machine may slow it down for a minute at a time,
which only the probe of the stage shows: a fixed computation. So the stage is repeated until
`--repeats` runs were not called noisy by the stage and found the machine equally fast (probes
within 2 %), at most `--tries` times. `spread` is the largest median of a variant divided by its
smallest over these repeats, minus one. `spread_of_all` is the same over all runs that were not
called noisy, and `probes` has the probe of each. Ratios are of medians within one interleaved run:
fused (batch norms folded) to the plain network with the same folding, fused to the plain network as
it is trained, and unfused to fused.

The networks run on one thread. On a virtual machine, two threads that wait for each other took
twice as long for seconds at a time, most likely when the machine's cores share a real one, which is
invisible inside. They also run with an allocator that keeps memory: by default glibc returns the
memory of large activations to the system and requests it again in the next call. `default / kept`
is the cost of that.

    python -m benchmarks.latency --json benchmarks/results/latency.json
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import PROJECT, evidence
from pipeline.records import environment, outfile, rundir
from pipeline.report import write_report

CALLS = 200  # timed calls per variant and batch size
BESIDE = 10  # timed calls beside the other process, which suffice to notice it
SPREAD, RATIO = 0.03, (0.97, 1.03)
SAME = 0.02  # largest relative difference of the probes of equally fast runs
BATCHES = (1, 64)
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tries", type=int, default=12)
    parser.add_argument("--model", nargs="+", default=["vgg_small"])
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="copy the report of one of them there"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(model, options, Path(folder)) for model in options.model]
    report = {"device": environment.device(), "cores": environment.cores(), "rows": rows}
    show(report)
    if options.json:
        evidence.write(options.json, report)
    return 0 if all(holds(row) for row in rows) else 1


def measure(model: str, options: argparse.Namespace, root: Path) -> dict:
    """Time one network repeatedly, then beside a busy process."""
    runs: list[dict] = []
    quiet: list[dict] = []
    while not quiet and len(runs) < options.tries:
        runs.append(launch(root, model, CALLS + len(runs), **KEEP))
        quiet = equally_fast(runs, options.repeats)
    if not quiet:
        sys.exit(
            f"this machine is not steady: {[(probe(found), found['noise']) for found in runs]}"
        )
    if options.report:
        outfile.write(options.report, write_report(quiet[-1]["run"]).read_text())
    default = launch(root, model, CALLS - 1)
    burn = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(environment.cores())]  # fmt: skip
    try:
        disturbed = launch(root, model, BESIDE, **KEEP)
    finally:
        for process in burn:
            process.kill()
    return {
        "model": model,
        "noise": [found["noise"] for found in runs],
        "probes": [probe(found) for found in runs],
        "default": {"probe": probe(default), "noise": default["noise"]},
        "beside_a_neighbour": disturbed["noise"],
        "spread": spread(quiet),
        "spread_of_all": spread([found for found in runs if not found["noise"]]),
        "ratios": {
            f"b{batch}": {
                "fused / plain_folded": ratios(quiet, "fused", "plain_folded", batch),
                "fused / plain": ratios(quiet, "fused", "plain", batch),
                "unfused / fused": ratios(quiet, "unfused", "fused", batch),
                "fused / compiled": ratios(quiet, "fused", "compiled", batch),
                "fused / int8": ratios(quiet, "fused", "int8", batch),
                "fused, default / kept": ratios(quiet, "fused", "fused", batch, default),
                "unfused, default / kept": ratios(quiet, "unfused", "unfused", batch, default),
            }
            for batch in BATCHES
        },
    }


def launch(root: Path, model: str, calls: int, **environment: str) -> dict:
    """Time the network in a directory of its own; its training is shared."""
    name = f"{model}-{calls}"
    subprocess.run(
        [
            sys.executable, "-m", "pipeline.launch", f"name={name}", f"root={root}",
            f"model={model}", "method=dbb", "train.epochs=2", "train.warmup_epochs=0",
            f"latency.batch_sizes={list(BATCHES)}", f"latency.repeats={calls}",
            "latency.threads=1", "tracking=disabled",
        ],
        cwd=PROJECT, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    folder = rundir.run_dir(root, name) / "latency"
    return {
        "run": rundir.run_dir(root, name),
        "metrics": rundir.read_json(folder / rundir.RESULT)["metrics"],
        "noise": rundir.read_json(folder / "latency.json")["noise"],
    }


def probe(found: dict) -> float:
    """Return the time of the fixed computation, milliseconds."""
    return round(found["metrics"]["probe_ms"], 3)


def equally_fast(runs: list[dict], count: int) -> list[dict]:
    """Return `count` runs that are not noisy and have close probes; none if there are fewer."""
    runs = sorted((found for found in runs if not found["noise"]), key=probe)
    groups = [runs[i : i + count] for i in range(len(runs) - count + 1)]
    return next((g for g in groups if probe(g[-1]) / probe(g[0]) - 1 <= SAME), [])


def spread(found: list[dict]) -> dict[str, float]:
    """Return the largest over the smallest median, minus 1, for each variant and batch size."""
    medians = {
        name: [one["metrics"][name] for one in found]
        for name in found[0]["metrics"]
        if name.endswith("p50_ms") and "/b" in name
    }
    return {name: max(values) / min(values) - 1 for name, values in medians.items()}


def ratios(
    found: list[dict], above: str, below: str, batch: int, other: dict | None = None
) -> list[float]:
    """Return the ratio of the medians in each repeat; `other` is a run with the numerator."""
    key = f"b{batch}/p50_ms"
    return [
        round((other or one)["metrics"][f"{above}/{key}"] / one["metrics"][f"{below}/{key}"], 3)
        for one in found
    ]


def holds(row: dict) -> bool:
    """Whether the claims about the latency stage hold for this row."""
    fused = {name: value for name, value in row["spread"].items() if name.startswith("fused/b")}
    low, high = RATIO
    return (
        bool(row["beside_a_neighbour"])
        and max(fused.values()) <= SPREAD
        and all(
            low <= sorted(r["fused / plain_folded"])[len(r["fused / plain_folded"]) // 2] <= high
            and sorted(r["fused / plain"])[len(r["fused / plain"]) // 2] <= 1.0
            for r in row["ratios"].values()
        )
    )


def show(report: dict) -> None:
    """Print ratios, spread, and whether the busy process was noticed."""
    table = Table("network", "batch", "ratio", "in each repeat", box=None)
    for row in report["rows"]:
        for batch, ratio in row["ratios"].items():
            for name, values in ratio.items():
                table.add_row(row["model"], batch[1:], name, ", ".join(f"{v:.2f}" for v in values))
    Console(width=110).print(table)
    for row in report["rows"]:
        worst = max((v, name) for name, v in row["spread"].items() if name.startswith("fused/b"))
        print(
            f"{row['model']}: medians of fused within {worst[0]:.1%} where the machine was equally "
            f"fast, {len(row['probes'])} runs in all; beside a neighbour: "
            f"{'; '.join(row['beside_a_neighbour']) or 'NOTHING WAS NOTICED'}"
            f"{'' if holds(row) else '; DOES NOT HOLD'}"
        )


if __name__ == "__main__":
    sys.exit(main())
