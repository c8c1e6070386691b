"""Compare a thousand made-up runs; measure seconds and memory of the command that users call.

python -m benchmarks.compare --runs 1000 --json benchmarks/results/compare.json
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import PROJECT, evidence
from tests.runs import make_run

SEEDS = 5
EPOCHS = 60


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        make(Path(folder), options.runs)
        report = {
            "runs": options.runs,
            "groups": -(-options.runs // SEEDS),
            "repeats": options.repeats,
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 1),
            "table": measure(Path(folder), options.repeats),
            "json": measure(Path(folder), options.repeats, "--json", f"{folder}/a.json"),
            "html": measure(Path(folder), options.repeats, "--html", f"{folder}/a.html"),
        }
    for what in ("table", "json", "html"):
        spent = report[what]
        print(f"{what:6} {spent['seconds']} s, {spent['mebibytes']} MiB")
    if options.json:
        evidence.write(options.json, report)
    return 0


def make(root: Path, runs: int) -> None:
    """Write runs in groups of five seeds each."""
    noise = random.Random(0)
    for number in range(runs):
        setting, seed = divmod(number, SEEDS)
        method = ("plain", "dbb", "dyrep")[setting % 3]
        make_run(
            root, f"r{number}", f"method={method}",
            seed=seed, top1=noise.gauss(90, 1), gpus=1, seconds=noise.uniform(1e3, 1e4),
            changed={"train.lr": round(0.001 * (1 + setting // 3), 6)},
            epochs=[90 - 60 / (1 + epoch) for epoch in range(EPOCHS)], steps=10,
        )  # fmt: skip


def measure(root: Path, repeats: int, *arguments: str) -> dict:
    """Return the seconds of each call, and the largest memory over all calls."""
    seconds, largest = [], 0
    for _ in range(repeats):
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.compare", "--group", "g", "--root", root, *arguments],
            cwd=PROJECT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"pipeline.compare ended with {process.returncode}")
        seconds.append(round(time.monotonic() - begun, 2))
        largest = max(largest, usage.ru_maxrss)
    return {"seconds": seconds, "mebibytes": round(largest / 1024)}


if __name__ == "__main__":
    sys.exit(main())
