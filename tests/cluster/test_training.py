"""A real training on two nodes, through everything a cluster does to it, equal to one left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import rundir
from slurm import scheduler
from slurm.dev_cluster import start
from tests.cluster.real import call, needs_slurm, wait_for
from tests.launcher import PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]
TRAINING = (
    "data=digits", "train.epochs=40", "method.adjust_interval=4", "train.ema=0.9", "seed=3",
    "cluster=slurm", "cluster.nodes=2", "cluster.processes_per_node=2", "cluster.cpus_per_process=1",
    "checkpoint.interval=10 steps", "latency.repeats=10", "latency.batch_sizes=[1]",
)  # fmt: skip


def run(command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"pipeline.{command}", *arguments], cwd=PROJECT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def launch(root, *more):
    done = run("launch", f"root={root}", *TRAINING, *more)
    assert done.returncode == 0, done.stderr
    return Path(root) / "runs"


class Watched:
    """A run under way: where it is, and ways to disturb it."""

    def __init__(self, root, name):
        self.run = Path(root) / "runs" / name
        self.train = self.run / "train"
        self.id = json.loads((self.run / "run.json").read_text())["job_ids"][-1]["train"]

    def events(self, name):
        return [
            row for row in rundir.read_lines(self.train / rundir.EVENTS) if row["event"] == name
        ]

    def steps_into(self, attempt, steps=15):
        """Wait until an attempt has made some steps."""

        def there():
            first = [row for row in self.events("first_step") if row["attempt"] == attempt]
            progress = json.loads((self.train / rundir.PROGRESS).read_text()) if first else {}
            return first and progress["done"] >= first[0]["step"] + steps

        wait_for(there, 90)

    def processes(self, *words):
        """Return the processes that work on the training and have these words in their command."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().decode().split("\0")
                environment = (process / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(self.train.resolve()) in line and all(word in line for word in words):
                found.append((int(process.name), dict(
                    pair.split("=", 1) for pair in environment.split("\0") if "=" in pair
                )))  # fmt: skip
        return found

    def kill(self, **environment):
        """Kill -9 the one process of the training with this environment."""
        ((pid, _),) = [
            (pid, seen)
            for pid, seen in self.processes()
            if all(seen.get(key) == value for key, value in environment.items())
        ]
        os.kill(pid, signal.SIGKILL)

    def requeue(self, cluster):
        call("scontrol", "requeue", self.id)

    def preempt(self, cluster):
        log = self.run / "high.log"
        call("sbatch", "-p", "high", "-N4", "--exclusive", f"-o{log}", "--wrap=sleep 1")

    def time_limit(self, cluster):
        call("scontrol", "update", f"JobId={self.id}", "TimeLimit=2")
        wait_for(lambda: scheduler.find(self.id).state == "PENDING", 90)
        call("scontrol", "update", f"JobId={self.id}", "TimeLimit=60")

    def kill_worker(self, cluster):
        self.kill(RANK="3")

    def kill_torchrun(self, cluster):
        ((pid, _),) = [
            (pid, seen)
            for pid, seen in self.processes("torch.distributed.run")
            if seen["NODE_RANK"] == "0"
        ]
        os.kill(pid, signal.SIGKILL)

    def kill_supervisor(self, cluster):
        (node,) = [
            pid
            for pid, seen in self.processes("pipeline.run")
            if seen.get("NODE_RANK") == "0"
            and "RANK" not in seen
            and "TORCHELASTIC" not in str(seen)
        ][:1]
        parent = int(Path(f"/proc/{node}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)

    def lose_a_node(self, cluster):
        """End a node's slurmd: SLURM starts the job elsewhere while the old processes go on."""
        node = call("scontrol", "show", "hostnames", scheduler.find(self.id).nodes).split()[0]
        attempts = len(self.events("started"))
        os.kill(int((cluster.directory / "run" / f"{node}.pid").read_text()), signal.SIGKILL)
        wait_for(lambda: len(self.events("started")) > attempts, 120)
        start(cluster, node)


SIGNALLED = ("requeue", "preempt", "time_limit")
KILLED = ("kill_worker", "kill_torchrun", "kill_supervisor", "lose_a_node")


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """Return the training stage of a run that nothing happens to."""
    root = tmp_path_factory.mktemp("undisturbed")
    train = launch(root, "name=calm", "stage.run=[prep,train]") / "calm" / "train"
    wait_for((train / rundir.RESULT).exists, 240)
    return train


def test_a_training_through_everything_equals_one_left_alone(cluster, undisturbed, tmp_path):
    launch(tmp_path, "name=night")
    night = Watched(tmp_path, "night")
    for attempt, what in enumerate((*SIGNALLED, *KILLED), start=1):
        wait_for(lambda: scheduler.find(night.id).state == "RUNNING", 60)
        night.steps_into(attempt)
        getattr(night, what)(cluster)
    wait_for((night.run / "report.html").exists, 300)

    assert rundir.sha256(night.train / "model.safetensors") == rundir.sha256(
        undisturbed / "model.safetensors"
    )
    assert (night.train / rundir.HISTORY).read_text().count("\n") == (
        undisturbed / rundir.HISTORY
    ).read_text().count("\n")
    for number, resumed in enumerate(night.events("resumed"), start=1):
        before = [row["step"] for row in night.events("saved") if row["attempt"] == number]
        assert resumed["step"] == max(before)
        if number <= len(SIGNALLED):  # a signal costs no step: the last that was made was saved
            steps = [row for row in night.events("stopped") if row["attempt"] == number]
            assert steps
    whys = [row["why"] for row in night.events("requeued")]
    assert whys.count("crashed") == 3
    told = json.loads(run("status", "night", "--root", str(tmp_path), "--json").stdout)
    assert told["runs"][0]["state"] == "done"
    assert told["runs"][0]["lost_seconds"] > 0
    assert "attempt-008" in run("logs", "night", "train", "--root", str(tmp_path)).stdout


def test_a_cancelled_run_stays_so_until_it_is_launched_again(cluster, tmp_path):
    launch(tmp_path, "name=day", "train.epochs=400", "seed=4")
    day = Watched(tmp_path, "day")
    day.steps_into(1)
    told = run("status", "day", "--root", str(tmp_path)).stdout
    assert "for train of day" in told
    done = run("cancel", "day", "--root", str(tmp_path))
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not [entry for entry in scheduler.mine().values() if entry.active])
    time.sleep(7)  # longer than a requeue takes
    assert not [entry for entry in scheduler.mine().values() if entry.active]
    state = json.loads(run("status", "day", "--root", str(tmp_path), "--json").stdout)
    assert [stage["state"] for stage in state["runs"][0]["stages"]] == ["done"] + 4 * ["cancelled"]
    saved = day.events("saved")[-1]["step"]
    again = run("launch", f"root={tmp_path}", "name=day")
    assert again.returncode == 0, again.stderr
    day = Watched(tmp_path, "day")
    wait_for(lambda: day.events("resumed"), 60)
    assert day.events("resumed")[0]["step"] == saved
    run("cancel", "day", "--root", str(tmp_path))
