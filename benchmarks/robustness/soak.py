"""Check for leaks in a training of 300 epochs.

The benchmark trains the small network on digits with growth, cutting, averaged weights and frequent
checkpoints. At the end of each epoch it records the memory, open files and threads of all
processes, and the sizes of all files of the stage. Growth ends after a third of the epochs. Of the
epochs after that, the median of the last quarter is compared with that of the first: a quantity
that rises by more than its share leaks. Files that gain rows by design must gain them at a constant
pace.

    python -m benchmarks.soak --json benchmarks/results/soak.json
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import PROJECT, evidence
from benchmarks.killing import children
from pipeline.records import rundir

SETTINGS = (
    "stage.run=[prep,train]", "name=soak", "data=digits", "data.channels=3",
    "data.val_fraction=0.5",
    "model.widths=[[8,8],[16,16]]", "method=dyrep", "method.cut_std=0.001", "method.cut_ratio=0.3",
    "train.batch_size=128", "train.ema=0.99", "checkpoint.interval=2 steps", "tracking=disabled",
)  # fmt: skip
SETTLED = 10  # epochs after the last change of structure that are left out
# accepted rises; a checkpoint may just be written, with its file open, or not
SHARE = {"memory": 0.03, "checkpoints": 0.3, "files": 0.05, "threads": 0.0, "rows": 0.05}
ROWS = {rundir.HISTORY, rundir.GROWTH, rundir.EVENTS, "logs"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=300, help="(default: 300)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        samples, events = soak(Path(folder), options.epochs)
    settled = max((event["epoch"] for event in events), default=0) + SETTLED
    report = {
        "epochs": options.epochs,
        "grown": sum(event["action"] == "grow" for event in events),
        "cut": sum(event["action"] == "cut" for event in events),
        "settled_after": settled,
        "trend": trend([row for row in samples if row["epoch"] > settled]),
        "samples": samples,
    }
    show(report)
    if options.json:
        evidence.write(options.json, report)
    return 0 if all(row["flat"] for row in report["trend"].values()) else 1


def soak(root: Path, epochs: int) -> tuple[list[dict], list[dict]]:
    """Train; return the samples at the end of each epoch, and the changes of structure."""
    last = epochs // 3
    growth = (f"method.adjust_interval={max(1, last // 10)}", f"method.last_adjust_epoch={last}")
    command = [sys.executable, "-m", "pipeline.launch", *SETTINGS, *growth]
    command += [f"train.epochs={epochs}", f"root={root}"]
    launcher = subprocess.Popen(command, cwd=PROJECT)
    train, samples, seen = root / "runs" / "soak" / "train", [], 0
    while launcher.poll() is None:
        time.sleep(0.3)
        rows = list(rundir.read_lines(train / rundir.HISTORY))
        if rows and rows[-1]["epoch"] > seen + 1:  # `seen` has ended, and was adjusted and saved
            seen = rows[-1]["epoch"] - 1
            samples.append({"epoch": seen, **sample(launcher.pid, train.resolve())})
    if launcher.returncode:
        sys.exit(launcher.returncode)
    return samples, list(rundir.read_lines(train / rundir.GROWTH))


def sample(launcher: int, train: Path) -> dict:
    """Return the resources of the processes below the launcher, and the files' sizes in bytes."""
    found = {"memory": 0, "files": 0, "threads": 0}
    for pid in below(launcher)[1:]:
        with suppress(OSError):  # the process has just ended
            status = Path(f"/proc/{pid}/status").read_text()
            facts = dict(line.split(":", 1) for line in status.splitlines())
            found["memory"] += int(facts.get("VmRSS", "0").split()[0]) * 1024
            found["threads"] += int(facts["Threads"])
            found["files"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    sizes = {}
    for path in train.rglob("*"):
        with suppress(OSError):
            sizes[path.relative_to(train)] = path.stat().st_size if path.is_file() else 0
    rows = sum(size for path, size in sizes.items() if {*path.parts} & ROWS)
    return {**found, "rows": rows, "checkpoints": sum(sizes.values()) - rows}


def below(pid: int) -> list[int]:
    return [pid, *(deeper for child in children(pid) for deeper in below(child))]


def trend(samples: list[dict]) -> dict[str, dict]:
    """Return each number's median in the first and the last quarter, and whether it is flat."""
    pairs = itertools.pairwise(samples)
    pace = [(b["rows"] - a["rows"]) / (b["epoch"] - a["epoch"]) for a, b in pairs]
    found = {}
    for name, share in SHARE.items():
        values = pace if name == "rows" else [row[name] for row in samples]
        quarter = max(1, len(values) // 4)
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        found[name] = {"first": first, "last": last, "flat": last - first <= share * first}
    return found


def show(report: dict) -> None:
    """Print each number at every tenth of the training, and its trend."""
    table = Table("epoch", "memory, MiB", "open files", "threads", "checkpoints, KiB", "rows, KiB")
    samples = report["samples"]
    for row in samples[:: max(1, len(samples) // 10)]:
        table.add_row(
            str(row["epoch"]), f"{row['memory'] / 2**20:.1f}", str(row["files"]),
            str(row["threads"]), f"{row['checkpoints'] / 2**10:.0f}", f"{row['rows'] / 2**10:.0f}",
        )  # fmt: skip
    Console().print(table)
    print(f"{report['grown']} grown, {report['cut']} cut; from epoch {report['settled_after']} on:")
    for name, row in report["trend"].items():
        verdict = "flat" if row["flat"] else "RISES"
        what = f"{name} an epoch" if name == "rows" else name
        print(f"{what}: {row['first']:,.0f} at first, {row['last']:,.0f} at last: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
