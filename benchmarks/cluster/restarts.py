"""Requeue a training on a real SLURM again and again; measure the time to its next step.

The benchmark starts a cluster of its own (`slurm.dev_cluster`, needs root and SLURM's packages) and
a training on one node with one process. The seconds in which SLURM keeps the job waiting are
subtracted from those between `scontrol requeue` and the next step. On a busy machine, the CPU
seconds that all processes of the job used up to the step are more informative.

    python -m benchmarks.restarts --count 9 --json benchmarks/results/restarts.json
"""

import argparse
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import evidence
from benchmarks.recovery import Case, Night, launch
from slurm import scheduler
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import down, up
from tests.cluster.real import jobs

SETTINGS = ("cluster.nodes=1", "train.epochs=2000", "stage.run=[prep,train]")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=9, help="how often")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="restarts-") as folder:
        cluster = Cluster(Path(folder) / "c", nodes=1, cpus_per_node=2, grace=2)
        up(cluster)
        os.environ.update(cluster.environment)
        try:
            night = Night(cluster, launch(Path(folder) / "one", *SETTINGS))
            version = scheduler.call("sbatch", "--version").split()[-1]
            report: dict[str, Any] = {"slurm": version, "restarts": []}
            for number in range(1, options.count + 1):
                report["restarts"].append(restart(night, number))
                evidence.write(options.json, report)
        finally:
            down(cluster.directory)
    show(report["restarts"])


def restart(night: Night, number: int) -> dict[str, Any]:
    """Requeue attempt `number`; return the seconds to its save and to the next step."""
    row = night.through(number, Case("scontrol requeue", Night.requeue))
    used = [cpu(pid) for pid, _, seen in jobs(night.cluster) if seen["SLURM_JOB_ID"] == night.id]
    began = night.events("began")[-1]
    times = [row["time"] for name in ("signal", "ended") for row in night.events(name)]
    left = max(time for time in times if time < began["time"])
    script = float(began["mark"].partition("-")[0])  # start time of the batch script
    waited = max(0.0, script - left)
    (phases,) = (row["seconds"] for row in night.events("first_step")[-1:])
    return {
        "seconds_to_saved": row["seconds_to_saved"],
        "seconds_to_step": row["seconds_to_step"],
        "seconds_of_slurm": round(waited, 2),
        "seconds_without_slurm": round(row["seconds_to_step"] - waited, 2),
        "seconds_to_supervisor": round(began["time"] - script, 2),
        **{f"seconds_of_{name}": seconds for name, seconds in phases.items()},
        "cpu_seconds_to_step": round(sum(used), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def show(rows: list[dict[str, Any]]) -> None:
    """Print the median and the range of each quantity."""
    for name in rows[0]:
        values = sorted(row[name] for row in rows if row[name] is not None)
        print(f"{name}: median {median(values):.2f}, {values[0]:.2f} to {values[-1]:.2f}")


if __name__ == "__main__":
    main()
