"""Disturb jobs on a real SLURM in random ways, again and again; count lost and doubled work.

The benchmark starts a cluster of its own (`slurm.dev_cluster`, needs root and SLURM's packages). In
each round it launches three chains of hashes and one training, with some of SLURM's variables in
the shell, and disturbs them at random until the round's share is used up: jobs are preempted,
suspended, requeued, killed process by process, cancelled and launched again; the controller is
restarted; nodes are taken away. In two rounds of three, preemption requeues jobs; in the third it
cancels them, and the training has two nodes. Finally all work must end as if nothing had happened.

    python -m benchmarks.disturbances --count 200 --json benchmarks/results/disturbances.json

The file is written after each disturbance. `--resume` keeps the complete rounds in it.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import evidence
from benchmarks.disturbances.kinds import KINDS, SIGNALLED
from benchmarks.disturbances.night import Night
from benchmarks.disturbances.subjects import Digits, Hashes, Subject
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import down, up
from tests.cluster.job_under_test import update
from tests.cluster.real import call, wait_for

SHARE = 25  # disturbances in a round
CHAINS = 3
READY = 0.8  # share of the disturbances that wait until their job is working
TURN = 60.0  # longest such wait in seconds, as SLURM can take minutes to notice a loss
END = 900.0  # seconds for everything to end after the last disturbance


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="disturbances")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--resume", action="store_true", help="go on with the rounds in FILE")
    options = parser.parse_args()
    report: dict[str, Any] = {"slurm": "", "seed": options.seed, "rounds": []}
    if options.resume and options.json.exists():
        rounds = json.loads(options.json.read_text())["rounds"]
        report["rounds"] = [each for each in rounds if each["complete"]]
    folder = Path(tempfile.mkdtemp(prefix="disturbed-"))
    cluster = Cluster(folder / "c", nodes=4, cpus_per_node=2, grace=2)
    up(cluster)
    os.environ.update(cluster.environment)
    report["slurm"] = call("sbatch", "--version").split()[-1]
    try:
        calm = undisturbed(cluster, folder)
        while (left := options.count - count(report)) > 0:
            night_through(cluster, folder, calm, min(left, SHARE), report, options.json)
    finally:
        shutil.copytree(cluster.directory / "log", folder / "log")  # `down` removes the cluster
        down(cluster.directory)
    show(report)
    if faults(report):
        print(f"the logs of SLURM and of the jobs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def count(report: dict[str, Any]) -> int:
    """Return the number of disturbances."""
    return sum(len(each["log"]) for each in report["rounds"])


def faults(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the faults: events that must not happen."""
    return [fault for each in report["rounds"] for fault in each["faults"]]


def undisturbed(cluster: Cluster, folder: Path) -> dict[int, Path]:
    """Train undisturbed on one node and on two; return the stages by the number of nodes."""
    calm = [Digits(f"calm on {nodes}", folder / f"calm-{nodes}", nodes) for nodes in (1, 2)]
    night = Night(cluster, calm, random.Random(0))
    for subject in calm:
        subject.launch({})
    assert night.wait(lambda: all(subject.done for subject in calm), END)
    empty()
    return {subject.nodes: subject.main for subject in calm}


def night_through(
    cluster: Cluster, folder: Path, calm: dict[int, Path], share: int, report: dict[str, Any],
    file: Path,
) -> None:  # fmt: skip
    """Run a round and add it to the report; write the file after each disturbance."""
    number = len(report["rounds"])
    cancels = (report["seed"] + number) % 3 == 2
    nodes = 2 if cancels else 1
    place = folder / f"round-{number}"
    night = Night(
        cluster,
        [
            *(Hashes(f"chain {each}", place / f"chain-{each}") for each in range(CHAINS)),
            Digits("training", place / "training", nodes, calm[nodes]),
        ],
        random.Random(f"{report['seed']}-{number}"),
    )
    update(PreemptMode="CANCEL" if cancels else "REQUEUE", GraceTime=cluster.grace)
    row = {"preemption": "CANCEL" if cancels else "REQUEUE", "complete": False, "log": [],
           "faults": night.faults, "administered": night.administered}  # fmt: skip
    report["rounds"].append(row)
    for subject in night.subjects:
        night.launch(subject)
    while len(row["log"]) < share and not all(subject.done for subject in night.subjects):
        row["log"] += disturb(night)
        evidence.write(file, report)
    row["ends"] = [verdict(night, subject) for subject in to_their_ends(night)]
    row["complete"] = True
    evidence.write(file, report)
    empty()


def empty() -> None:
    """Cancel everything in the queue before the next round."""
    call("scancel", "--me")
    wait_for(lambda: not call("squeue", "--me", "--noheader"), 120)


def disturb(night: Night) -> list[dict[str, Any]]:
    """Disturb a random subject in a random way; return a row about it; [] if it was too late."""
    name = night.chance.choice(sorted(KINDS))
    subject = night.chance.choice([each for each in night.subjects if not each.done])
    if night.chance.random() < READY:
        night.wait(lambda: subject.works or subject.done, TURN)
    entry = night.entry(subject)
    if entry is None or subject.directories()[subject.main]:
        return []
    begun = time.monotonic()
    row = {"kind": name, "subject": subject.name, "state": entry.state, "works": subject.works}
    done = KINDS[name](night, subject)
    print(f"{subject.name} ({entry.state}): {name}{'' if done else ', too late'}", flush=True)
    return [{**row, "seconds": round(time.monotonic() - begun, 1)}] if done else []


def to_their_ends(night: Night) -> Sequence[Subject]:
    """Wait until all subjects are done; an unfinished subject is a fault."""
    for subject in night.subjects:
        subject.hurry()
    night.wait(lambda: all(subject.done for subject in night.subjects), END)
    for subject in night.subjects:
        if not subject.done:
            night.faults.append({"fault": "lost", "subject": subject.name, "after": END})
    return night.subjects


def verdict(night: Night, subject: Subject) -> dict[str, Any]:
    """Return the outcome of a subject; steps repeated after nothing but signals are faults."""
    again = subject.repeated()
    for causes, steps in again:
        if steps and causes <= SIGNALLED:
            facts = {"subject": subject.name, "causes": sorted(causes), "steps": steps}
            night.faults.append({"fault": "steps repeated after a signal", **facts})
    differences = subject.judge() if subject.done else ["not done"]
    if differences:
        facts = {"subject": subject.name, "differences": differences}
        night.faults.append({"fault": "another end", **facts})
    return {
        "subject": subject.name,
        "attempts": len(again) + 1,
        "repeated": sum(steps for _, steps in again),
        "signalled": sum(causes <= SIGNALLED for causes, _ in again),
        "differences": differences,
    }


def show(report: dict[str, Any]) -> None:
    """Print how often each kind was tried, and the faults."""
    log = [row for each in report["rounds"] for row in each["log"]]
    table = Table("disturbance", "times", "while the job worked")
    times, working = (Counter(row["kind"] for row in some) for some in
                      (log, [row for row in log if row["works"]]))  # fmt: skip
    for kind in KINDS:
        table.add_row(kind, str(times[kind]), str(working[kind]))
    Console().print(table)
    ends = [end for each in report["rounds"] for end in each["ends"]]
    attempts = sum(end["attempts"] for end in ends)
    signalled = sum(end["signalled"] for end in ends)
    print(
        f"{len(log)} disturbances of {len(ends)} jobs in {attempts} attempts, "
        f"{signalled} of which ended by signals alone"
    )
    for fault in faults(report):
        print(fault)
    print(f"{len(faults(report))} faults")


if __name__ == "__main__":
    sys.exit(main())
