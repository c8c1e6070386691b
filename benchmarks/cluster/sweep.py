"""Submit a sweep of a thousand runs to a real SLURM, and time that and the status command.

The benchmark starts a cluster of its own (`slurm.dev_cluster`, needs root and SLURM's packages).
The jobs wait behind one that holds all nodes, so only the launch and the status are timed.

    python -m benchmarks.sweep --runs 1000 --json benchmarks/results/sweep.json
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import PROJECT, evidence
from slurm import scheduler
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import down, up


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        cluster = Cluster(Path(folder) / "c", nodes=2)
        up(cluster)
        os.environ.update(cluster.environment)
        try:
            report = measure(Path(folder), options.runs)
        finally:
            down(cluster.directory)
    print(
        f"{report['runs']} runs, {report['jobs']} jobs in {report['calls']} calls of sbatch: "
        f"submitted in {report['seconds_to_submit']} s, status in {report['seconds_of_status']} s"
    )
    if options.json:
        evidence.write(options.json, report)
    return 0


def measure(folder: Path, runs: int) -> dict:
    """Return the times of submitting `runs` runs and of querying their status."""
    block = ["sbatch", "--nodes=2", "--exclusive", f"--output={folder}/block.log"]
    subprocess.run([*block, "--wrap=sleep 3600"], check=True, stdout=subprocess.DEVNULL)
    root = folder / "o"
    seconds = [
        timed("launch", "-m", f"seed=range({runs})", "cluster=slurm", "group=g", f"root={root}"),
        timed("status", "--root", str(root)),
    ]
    ids = list(scheduler.user_jobs())
    return {
        "runs": runs,
        "jobs": len(ids) - 2,  # without the job that holds the nodes, and the cluster's first
        "calls": len({id.split("_")[0] for id in ids}) - 2,
        "seconds_to_submit": seconds[0],
        "seconds_of_status": seconds[1],
    }


def timed(command: str, *arguments: str) -> float:
    """Return the seconds that a command takes."""
    begun = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", f"pipeline.{command}", *arguments],
        cwd=PROJECT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return round(time.monotonic() - begun, 1)


if __name__ == "__main__":
    sys.exit(main())
