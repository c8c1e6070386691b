"""Measure how much slower commands are in a root with 2,000 runs.

The benchmark makes up a root with many finished runs and a root with a single one, and times
commands on both: `status`, `compare`, and `launch`, once as a dry run and once for the stage prep.
The additional time of a launch among many runs is the cost of searching them. Seconds are CPU time,
so that a busy machine gives the same numbers; the JSON also has wall-clock seconds.

    python -m benchmarks.crowd --json benchmarks/results/crowd.json
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import PROJECT, evidence
from tests.runs import make_run

METHODS = ("plain", "dbb", "dyrep", "acb")
COMMANDS = {
    "status": ["status"],
    "status of one": ["status", "r0000"],
    "status --json": ["status", "--json"],
    "compare": ["compare", "--group", "g"],
    "compare --html": ["compare", "--group", "g", "--html", "{root}/page.html"],
    "launch, dry": ["launch", "name=new", "dry_run=true", "root={root}"],
    "launch, prep": ["launch", "name=new", "group=g", "stage=prep", "root={root}"],
}
NUMBERS = {
    "prep/train_images": 1437, "prep/quarantined": 0, "prep/copies": 0, "prep/contradictions": 0,
    "prep/alike": 0, "prep/odd_files": 0, "prep/ignored_files": 0, "train/epochs": 12,
    "fuse/max_rel_error": 1e-15, "fuse/exports": 3, "fuse/exports_missing": 0,
    "eval/agreement": 100.0,
}  # fmt: skip
LIMIT = 10.0  # seconds that a command over all runs may take
OVERHEAD = 1.0  # additional seconds that a launch may take among many runs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000, help="(default: 2000)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crowd-") as folder:
        one, many = Path(folder) / "one", Path(folder) / "many"
        fill(one, 1)
        fill(many, options.runs)
        report = {
            name: {"one": timed(words, one), "many": timed(words, many)}
            for name, words in COMMANDS.items()
        }
    show(report, options.runs)
    if options.json:
        evidence.write(options.json, {"runs": options.runs, **report})
    return 0 if all(is_fast(name, row) for name, row in report.items()) else 1


def fill(root: Path, count: int) -> None:
    """Make up runs: methods and settings alternate, with four seeds each."""
    for number in track(range(count), description=f"{count} runs"):
        make_run(
            root, f"r{number:04d}", f"method={METHODS[number // 4 % 4]}", seed=number % 4,
            changed={"train.lr": 0.001 * (1 + number // 16)}, top1=90 + number % 7, steps=20,
            epochs=[float(epoch) for epoch in range(12)], metrics=NUMBERS,
        )  # fmt: skip


def timed(words: list[str], root: Path) -> dict[str, float]:
    """Run a command; return its seconds and its peak memory, MiB."""
    command = [sys.executable, "-m", f"pipeline.{words[0]}"]
    command += [word.format(root=root) for word in words[1:]]
    command += [] if words[0] == "launch" else ["--root", str(root)]
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    return {
        "seconds": round(used.ru_utime + used.ru_stime, 2),
        "wall": round(time.monotonic() - begun, 2),
        "mib": round(used.ru_maxrss / 1024),
    }


def is_fast(name: str, row: dict) -> bool:
    """Whether a command stays within its limit."""
    if name.startswith("launch"):
        return row["many"]["seconds"] - row["one"]["seconds"] < OVERHEAD
    return row["many"]["seconds"] < LIMIT


def show(report: dict, count: int) -> None:
    """Print seconds and memory, among many runs and for a single one."""
    table = Table("", "1 run, s", f"{count:,} runs, s", "1 run, MiB", f"{count:,} runs, MiB", "")
    for name, row in report.items():
        numbers = [str(row[size][unit]) for unit in ("seconds", "mib") for size in ("one", "many")]
        table.add_row(name, *numbers, "" if is_fast(name, row) else "SLOW")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
