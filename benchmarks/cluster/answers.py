"""Measure what a question to squeue costs, as JSON and as text, in CPU seconds.

The benchmark starts a cluster of its own (`slurm.dev_cluster`, needs root and SLURM from 24.05.1
on) whose partition is down, so that all jobs stay pending: as elements of one array, which SLURM
keeps as one job, or as jobs of their own.

    python -m benchmarks.answers --json benchmarks/results/answers.json
"""

import argparse
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import evidence
from slurm import answers, scheduler
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import down, up
from tests.cluster.real import restart, wait_for

FORMS = {
    "text": (answers.FORMAT, answers.queue_from_text),
    "json": ("--json", answers.queue_from_json),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=9, help="how often each question is asked")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="answers-") as folder:
        cluster = Cluster(Path(folder) / "c", nodes=1, accounting=False)
        up(cluster)
        os.environ.update(cluster.environment)
        try:
            restart(cluster, f"MaxArraySize=20001\nMaxJobCount=40000\n{cluster.conf.read_text()}")
            scheduler.call("scontrol", "update", "PartitionName=low", "State=DOWN")
            version = scheduler.call("squeue", "--version").split()[-1]
            report = {"slurm": version, "questions": list(questions(options.count))}
            evidence.write(options.json, report)
        finally:
            down(cluster.directory)
    for row in report["questions"]:
        print(row)


def questions(count: int) -> Iterator[dict[str, Any]]:
    for number in (2000, 10000):
        submit(f"--array=0-{number - 1}%64")
        yield {"jobs": f"an array of {number}", **cost(count)}
        scheduler.call("scancel", "--me")
        wait_for(lambda: not any(entry.active for entry in scheduler.user_jobs().values()))
    for _ in range(1000):
        submit()
    yield {"jobs": "1000 jobs", **cost(count)}


def submit(*options: str) -> None:
    scheduler.call("sbatch", "--output=/dev/null", "--comment=mark", *options, "--wrap=true")


def cost(count: int) -> dict[str, float]:
    """Ask in both forms, in turns; return the median CPU seconds of squeue and of the parser."""
    rows: dict[str, list[float]] = {
        f"{name}_{who}": [] for name in FORMS for who in ("squeue", "parser")
    }
    for _ in range(count):
        for name, (form, parse) in FORMS.items():
            before = used()
            text = scheduler.call(*scheduler._QUEUE, form, "--me")
            parse(text)
            after = used()
            for who in after:
                rows[f"{name}_{who}"].append(after[who] - before[who])
    return {name: round(median(seconds), 4) for name, seconds in rows.items()}


def used() -> dict[str, float]:
    who = {"squeue": resource.RUSAGE_CHILDREN, "parser": resource.RUSAGE_SELF}
    return {name: sum(resource.getrusage(number)[:2]) for name, number in who.items()}


if __name__ == "__main__":
    main()
