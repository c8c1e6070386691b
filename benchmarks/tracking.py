"""What W&B costs a training, and how long many runs take to be sent, against a server on loopback.

The same small training is launched in turns with tracking=online and tracking=disabled; the ratio
is that of the medians of a step's seconds, over all but the first epoch. Start-up is what the
training waits for before its follower is on its way. Then 200 run directories are sent by
pipeline.sync, twice.

    python -m benchmarks.tracking --json benchmarks/results/tracking.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline import rundir, tracking
from pipeline.config import Wandb
from tests.launcher import PROJECT, Launcher
from tests.runs import make_run
from tests.tracking.recorder import Recorder

EPOCHS = 12


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--runs", type=int, default=200, help="that are sent (default: 200)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tracking-") as folder:
        report = {
            "step": step(Path(folder) / "step", options.rounds),
            "start_seconds": round(start(Path(folder) / "start"), 4),
            "sync": sync(Path(folder) / "sync", options.runs),
        }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    return 0


def step(root: Path, rounds: int) -> dict:
    """Return the ratio of the seconds of a step with and without W&B."""
    ratios = []
    for turn in track(range(rounds), description="training"):
        seconds = {}
        for mode in ("online", "disabled") if turn % 2 else ("disabled", "online"):
            with Recorder() as recorder:
                launch = Launcher(root / f"{mode}{turn}")
                done = launch(
                    "stage.run=[prep,train]", f"tracking={mode}", f"train.epochs={EPOCHS}",
                    "method=plain", "name=x", environment=recorder.environment(),
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                arrived = [len(run.steps) for run in recorder.runs.values()]
            rows = rundir.read_lines(launch.root / "runs" / "x" / "train" / rundir.HISTORY)
            steps = [row for row in rows if row["kind"] == "step"]
            assert arrived == ([len(steps)] if mode == "online" else [])
            seconds[mode] = statistics.median(
                row["step_seconds"] for row in steps if row["epoch"] > 1
            )
        ratios.append(seconds["online"] / seconds["disabled"])
    return {"ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in ratios]}


def start(root: Path) -> float:
    """Return the seconds until a training goes on that asked for a follower."""
    run = make_run(root, "one")
    begun = time.perf_counter()
    follower = tracking.follow(run, Wandb(mode="online", project="p", entity=None))
    taken = time.perf_counter() - begun
    follower.kill()
    follower.wait()
    return taken


def sync(root: Path, count: int) -> dict:
    """Return the seconds to send many runs, and to find that nothing is new."""
    for number in range(count):
        make_run(root, f"r{number:03d}", seed=number)
    command = [sys.executable, "-m", "pipeline.sync", "--root", str(root)]
    taken = []
    with Recorder() as recorder:
        for _ in range(2):
            begun = time.perf_counter()
            subprocess.run(command, cwd=PROJECT, env=recorder.environment(), check=True)
            taken.append(time.perf_counter() - begun)
        complete = [run.steps == [1, 2, 3, 4, 5, 6] for run in recorder.runs.values()]
        once = [len(run.exits) == 1 for run in recorder.runs.values()]
    return {
        "runs": count, "complete": sum(complete), "sent_once": sum(once),
        "seconds": round(taken[0], 1), "again_seconds": round(taken[1], 1),
    }  # fmt: skip


def show(report: dict) -> None:
    """Print the numbers."""
    table = Table("", "")
    table.add_row("a step, online against disabled", f"{report['step']['ratio']:.3f}")
    table.add_row("each turn", ", ".join(map(str, report["step"]["ratios"])))
    table.add_row("start of the follower, s", f"{report['start_seconds']:.3f}")
    for name, value in report["sync"].items():
        table.add_row(f"sync: {name.replace('_', ' ')}", str(value))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
