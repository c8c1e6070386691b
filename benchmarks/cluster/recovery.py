"""Put a training on a real SLURM through everything that clusters do; compare it bit by bit.

The benchmark starts a cluster of its own (`slurm.dev_cluster`, needs root and SLURM's packages) and
submits a training on two nodes with two processes each, once undisturbed and once disturbed in one
way after the other. It reports the cost of each disturbance, and whether both results are equal.

    python -m benchmarks.recovery --json benchmarks/results/recovery.json
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import PROJECT, evidence
from benchmarks.chaos import differences
from pipeline.records import rundir
from slurm import scheduler
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import down, start, up
from slurm.place import NODE

SETTINGS = (
    "cluster=slurm",
    "cluster.nodes=2",
    "cluster.cpus_per_process=1",
    "train.deterministic=true",
    "train.ema=0.9",
    "method.adjust_interval=4",
    "method.last_adjust_epoch=12",
    "checkpoint.interval=10 steps",
    "latency.repeats=10",
    "latency.batch_sizes=[1]",
    "latency.also=[]",
    "fuse.exports=[]",
)
PROCESSES = "cluster.processes_per_node=2"
EPOCHS = 150  # enough to outlast the time in which SLURM has not noticed that a node is lost
INTO = 8  # steps that an attempt makes before it is disturbed
PATIENCE = 900.0  # seconds to wait for any condition


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        cluster = Cluster(Path(folder) / "c", nodes=4, cpus_per_node=2, grace=2)
        up(cluster)
        os.environ.update(cluster.environment)
        try:
            report = compare(cluster, Path(folder), CASES, [f"train.epochs={EPOCHS}", PROCESSES])
            cancelled(cluster, Path(folder), report)
        finally:
            down(cluster.directory)
    show(report)
    if options.json:
        evidence.write(options.json, report)
    return 1 if report["differences"] else 0


def compare(
    cluster: Cluster, folder: Path, cases: Sequence["Case"], settings: Sequence[str]
) -> dict:
    """Run both trainings; return the effect of each disturbance and the final differences."""
    calm = launch(folder / "calm", *settings, "stage.run=[prep,train]")
    wait_for((calm / "train" / rundir.RESULT).exists)
    night = Night(cluster, launch(folder / "night", *settings))
    rows = [night.through(number, case) for number, case in enumerate(cases, start=1)]
    wait_for((night.run / "report.html").exists)
    return {
        "cases": rows,
        "differences": differences((calm / "train").resolve(), night.train),
        "attempts": len(night.events("started")),
    }


def cancelled(cluster: Cluster, folder: Path, report: dict) -> None:
    """Add the result of a training to a report, on a cluster where preemption cancels jobs."""
    partition(GraceTime=0, PreemptMode="CANCEL")
    night = Night(
        cluster,
        launch(folder / "cancelled", f"train.epochs={EPOCHS}", PROCESSES, "stage.run=[prep,train]"),
    )
    report["cases"].append(night.through(1, Case("preempted by cancelling", Night.preempt)))
    wait_for((night.train / rundir.RESULT).exists)
    calm = (folder / "calm" / "runs" / "run" / "train").resolve()
    report["differences"] += differences(calm, night.train)


def partition(**facts: object) -> None:
    """Change the preemptible partition."""
    pairs = [f"{key}={value}" for key, value in facts.items()]
    scheduler.call("scontrol", "update", "PartitionName=low", *pairs)


def launch(root: Path, *more: str) -> Path:
    """Submit a run; return its directory."""
    command = [sys.executable, "-m", "pipeline.launch", f"root={root}", "name=run"]
    subprocess.run([*command, *SETTINGS, *more], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    return root / "runs" / "run"


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> object:
    """Wait until `condition` returns a true value; return that value."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError("it did not come about")
        time.sleep(0.1)
    return value


class Night:
    """A running training, and ways to disturb it."""

    def __init__(self, cluster: Cluster, run: Path) -> None:
        self.cluster, self.run = cluster, run
        self.train = (run / "train").resolve()
        self.id = json.loads((run / "run.json").read_text())["job_ids"][-1]["train"]

    def through(self, number: int, case: "Case") -> dict:
        """Disturb attempt `number` after a few steps; return the cost of the disturbance."""
        self._steps_into(number)
        begun = time.time()
        case.does(self)
        first = wait_for(lambda: self._first_step(number + 1))
        saved = [row for row in self.events("saved") if row["attempt"] == number]
        stopped = [row["time"] for row in self.events("stopped") if row["attempt"] == number]
        (resumed,) = [r["step"] for r in self.events("resumed") if r["attempt"] == number + 1]
        return {
            "case": case.name,
            "stopped": bool(stopped),
            "repeated": max(0, self.reached - resumed),
            "seconds_to_saved": round(saved[-1]["time"] - begun, 2) if stopped else None,
            "seconds_to_step": round(first["time"] - begun, 2),
        }

    def events(self, name: str) -> list[dict]:
        """Return the events of this name that attempts and supervisors recorded."""
        rows = rundir.read_lines(self.train / rundir.EVENTS)
        return [row for row in rows if row["event"] == name]

    def _first_step(self, attempt: int) -> dict | None:
        return next((r for r in self.events("first_step") if r["attempt"] == attempt), None)

    def _steps_into(self, attempt: int) -> None:
        first = wait_for(lambda: self._first_step(attempt))["step"]
        progress = self.train / rundir.PROGRESS
        wait_for(lambda: json.loads(progress.read_text())["done"] >= first + INTO)

    def _note_progress(self) -> None:
        self.reached = json.loads((self.train / rundir.PROGRESS).read_text())["done"]

    # -- ways to disturb it -------------------------------------------------------------------

    def _processes(self, *words: str) -> list[tuple[int, dict[str, str]]]:
        """Return the processes of the training with these words in their command."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().decode().split("\0")
                pairs = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if str(self.train) in line and all(word in line for word in words):
                found.append((int(process.name), dict(p.split("=", 1) for p in pairs if "=" in p)))
        return found

    def _kill(self, chosen: Callable[[dict[str, str]], bool], *words: str) -> None:
        (pid,) = [pid for pid, environment in self._processes(*words) if chosen(environment)]
        self._note_progress()
        os.kill(pid, signal.SIGKILL)

    def requeue(self) -> None:
        self._note_progress()
        scheduler.requeue(self.id)

    def preempt(self) -> None:
        command = ["sbatch", "--partition=high", "--nodes=4", "--exclusive", "--wrap=sleep 1"]
        self._note_progress()
        subprocess.run(
            [*command, f"--output={self.run}/high.log"], check=True, stdout=subprocess.DEVNULL
        )

    def preempt_without_grace(self) -> None:
        partition(GraceTime=0)
        self.preempt()

    def preempt_by_user_signal(self) -> None:
        with self.cluster.conf.open("a") as file:
            file.write("SlurmctldParameters=preempt_send_user_signal\n")
        scheduler.call("scontrol", "reconfigure")
        partition(GraceTime=10)
        self.preempt()

    def time_limit(self) -> None:
        self._note_progress()
        scheduler.call("scontrol", "update", f"JobId={self.id}", "TimeLimit=2")
        wait_for(lambda: scheduler.find(self.id).state == "PENDING")
        scheduler.call("scontrol", "update", f"JobId={self.id}", "TimeLimit=60")

    def kill_worker(self) -> None:
        self._kill(lambda seen: seen.get("RANK") == "3")

    def kill_parent(self) -> None:
        self._kill(lambda seen: seen.get(NODE) == "0" and "RANK" not in seen)

    def kill_supervisor(self) -> None:
        for pid, seen in self._processes("pipeline.run"):
            if seen.get(NODE) == "0" and "RANK" not in seen:
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if b"submitit" in Path(f"/proc/{parent}/cmdline").read_bytes():
                    self._note_progress()
                    os.kill(parent, signal.SIGKILL)
                    return
        raise LookupError("no supervisor")

    def lose_a_node(self) -> None:
        """End a slurmd: SLURM starts the job elsewhere, while the node's processes continue."""
        names = scheduler.call("scontrol", "show", "hostnames", scheduler.find(self.id).nodes)
        node = names.split()[0]
        attempts = len(self.events("started"))
        self._note_progress()
        os.kill(int((self.cluster.directory / "run" / f"{node}.pid").read_text()), signal.SIGKILL)
        wait_for(lambda: len(self.events("started")) > attempts)
        start(self.cluster, node)

    def restart_controller(self) -> None:
        """Restart slurmctld, then requeue the job, which slurmctld must still know."""
        pid = int((self.cluster.directory / "run" / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        time.sleep(3)
        start(self.cluster, "slurmctld")
        self.requeue()


@dataclass(frozen=True)
class Case:
    """One way to disturb a training."""

    name: str
    does: Callable[[Night], None]


CASES = (
    Case("preempted, 2 s of grace", Night.preempt),
    Case("preempted, no grace", Night.preempt_without_grace),
    Case("preempted, user signal", Night.preempt_by_user_signal),
    Case("scontrol requeue", Night.requeue),
    Case("time limit", Night.time_limit),
    Case("time limit again", Night.time_limit),
    Case("slurmctld restarted, requeue", Night.restart_controller),
    Case("kill -9 of a worker", Night.kill_worker),
    Case("kill -9 of the workers' parent", Night.kill_parent),
    Case("kill -9 of the supervisor", Night.kill_supervisor),
    Case("kill -9 of slurmd", Night.lose_a_node),
)


def show(report: dict) -> None:
    """Print the effect of each disturbance."""
    table = Table("disturbance", "steps repeated", "s to saved", "s to the next step")
    for row in report["cases"]:
        saved = "" if row["seconds_to_saved"] is None else f"{row['seconds_to_saved']:.1f}"
        table.add_row(row["case"], str(row["repeated"]), saved, f"{row['seconds_to_step']:.1f}")
    Console().print(table)
    verdict = (
        report["differences"] or "weights, history and growth are those of a training left alone"
    )
    print(f"{report['attempts']} attempts; {verdict}")


if __name__ == "__main__":
    sys.exit(main())
