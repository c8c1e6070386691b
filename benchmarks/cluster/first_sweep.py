"""Preempt a sweep of three methods and three seeds on a real SLURM again and again.

The benchmark starts a cluster of its own (`slurm.dev_cluster`, needs root and SLURM's packages) and
a server on loopback that the real wandb client takes for W&B. The sweep is tracked there
(`tracking=online`) while jobs of a higher priority take its nodes away. In the end each run must be
one W&B run that has each step once and the numbers of the run's files, and a comparison from W&B
must equal that from the files.

    python -m benchmarks.first_sweep --json benchmarks/results/first_sweep.json --page sweep.html

`--page` keeps the page of the comparison; `--screenshot FILE`, with Chromium, a picture of it.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import PROJECT, evidence
from pipeline.records import rundir, store
from pipeline.tracking import rows
from slurm import scheduler
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import down, up
from tests.pipeline.tracking.recorder import Recorder

GROUP = "first-sweep"
SETTINGS = (
    "-m", "method=plain,dbb,dyrep", "seed=1,2,3", f"group={GROUP}", "cluster=slurm",
    "tracking=online", "data.channels=3", "cluster.cpus_per_process=1", "train.epochs=9",
    "latency.batch_sizes=[1,64]",
    "latency.also=[]",
    "fuse.exports=[]",
)  # fmt: skip
RUNS = 9
PATIENCE = 3600.0  # seconds for the whole sweep
BROWSER = "chromium"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preemptions", type=int, default=12, help="(default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments they come at")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE")
    parser.add_argument("--screenshot", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder, Recorder() as recorder:
        cluster = Cluster(Path(folder) / "c", nodes=2, cpus_per_node=2, grace=5)
        up(cluster)
        os.environ.update({**recorder.environment(), **cluster.environment})
        root = Path(folder) / "outputs"
        try:
            taken = night(root, options.preemptions, random.Random(options.seed))
        finally:
            down(cluster.directory)
        page = (options.page or Path(folder) / "sweep.html").resolve()
        report = {"preempting_jobs": taken, **verdict(root, recorder), **compared(root, page)}
        if options.screenshot:
            picture(page, options.screenshot.resolve())
    show(report)
    if options.json:
        evidence.write(options.json, report)
    right = report["wandb_runs"] == len(report["runs"]) == RUNS and report["online_is_offline"]
    right &= all(row["each_once"] and row["as_the_files_say"] for row in report["runs"])
    return 0 if right else 1


def night(root: Path, preemptions: int, chance: random.Random) -> int:
    """Submit the sweep and preempt it until it is done; return the number of preemptions tried."""
    command = [sys.executable, "-m", "pipeline.launch", f"root={root}", *SETTINGS]
    subprocess.run(command, cwd=PROJECT, check=True)
    began, taken = time.monotonic(), 0
    while not done(root):
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError("the sweep has not ended")
        if taken < preemptions and trains(root):
            time.sleep(chance.uniform(0, 10))
            taken += 1
            preempting = [
                "sbatch", "--wait", "--partition=high", "--nodes=2", "--exclusive",
                "--output=/dev/null", "--wrap=sleep 3",
            ]  # fmt: skip
            subprocess.run(preempting, check=True, stdout=subprocess.DEVNULL)
        time.sleep(2)
    return taken


def directories(root: Path) -> list[Path]:
    return sorted(path for path in (root / "runs").glob("*") if (path / "run.json").exists())


def done(root: Path) -> bool:
    ended = [run for run in directories(root) if (run / "report.html").exists()]
    states = [rows.state(run) for run in ended]
    assert "failed" not in states
    return states.count("finished") == RUNS and not scheduler.call("squeue", "--noheader").strip()


def trains(root: Path) -> bool:
    """Whether a training is making steps."""
    for run in directories(root):
        events = [row.event for row in store.events((run / "train").resolve())]
        if events and events[-1] in ("first_step", "saved") and not (
            run / "train" / rundir.RESULT
        ).exists():  # fmt: skip
            return True
    return False


def verdict(root: Path, recorder: Recorder) -> dict:
    """Return the data of each run that arrived, and whether they agree with its files."""
    found = []
    for run in directories(root):
        arrived = recorder.runs[rundir.read_json(run / "run.json")["wandb"]["id"]]
        history = rundir.read_lines(run / "train" / rundir.HISTORY)
        steps = [row for row in history if row["kind"] == "step"]
        here = [(row["step"], row["loss"]) for row in steps]
        there = [(row["step"], row["train/loss"]) for row in arrived.history if "step" in row]
        found.append({
            "run": run.name,
            "attempts": max(row.attempt for row in store.events((run / "train").resolve())),
            "steps": len(arrived.steps),
            "each_once": arrived.steps == list(range(1, len(steps) + 1)),
            "as_the_files_say": here == there and arrived.state == "finished"
            and rows.results(run).items() <= arrived.summary.items()
            and arrived.group == GROUP,
        })  # fmt: skip
    return {"runs": found, "wandb_runs": len(recorder.runs), "not_understood": recorder.unknown}


def compared(root: Path, page: Path) -> dict:
    """Compare by files and by W&B; return whether both agree, and the groups."""
    answers = []
    for where in ([], ["--online"]):
        file = root / "answer.json"
        command = [
            sys.executable, "-m", "pipeline.compare", "--root", str(root), "--group", GROUP,
            "--json", str(file), *where, *([] if where else ["--html", str(page)]),
        ]  # fmt: skip
        subprocess.run(command, cwd=PROJECT, check=True)
        answers.append(json.loads(file.read_text())["groups"])
    parts = [[(g["label"], g["top1"], g["versus"], g["sizes"]) for g in a] for a in answers]
    groups = [{"group": g["label"], "top1": g["top1"]} for g in answers[0]]
    return {"online_is_offline": parts[0] == parts[1], "groups": groups}


def picture(page: Path, file: Path) -> None:
    """Take a screenshot of the page in a browser."""
    if not shutil.which(BROWSER):
        print(f"note: no {BROWSER}, no picture")
        return
    command = [
        BROWSER, "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={file}",
        "--window-size=1280,1500", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)


def show(report: dict) -> None:
    """Print the data that arrived."""
    table = Table("run", "attempts", "steps", "each once", "as the files say")
    for row in report["runs"]:
        signs = ["yes" if row[name] else "NO" for name in ("each_once", "as_the_files_say")]
        table.add_row(row["run"], str(row["attempts"]), str(row["steps"]), *signs)
    Console().print(table)
    same = "the same" if report["online_is_offline"] else "NOT the same"
    print(
        f"{report['preempting_jobs']} preempting jobs; {report['wandb_runs']} W&B runs of "
        f"{len(report['runs'])}; the comparison from W&B is {same}"
    )


if __name__ == "__main__":
    sys.exit(main())
