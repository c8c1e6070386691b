"""Measure the cost of saving a checkpoint, and the time to resume from one.

Saving: a training makes steps in turns of equal length, alternately without and with one save, on
networks of up to 100 MB of weights (with momentum, so a checkpoint is twice as large). A turn with
a save makes fewer steps; the time of the missing steps is the cost of the save. Divided by the
interval that `checkpoint.interval=auto` derives from it, this is the share of time a training
loses.

Resuming: a training on digits is stopped and started again. Measured are the seconds from the start
of the process to its first new step, and the phases in which they were spent.

    python -m benchmarks.checkpoint --rounds 5 --json benchmarks/results/checkpoint.json
"""

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18, resnet50

from benchmarks import PROJECT, evidence
from benchmarks.chaos import copy_question, launch
from benchmarks.killing import rows
from pipeline.config.train import Checkpoint
from pipeline.networks.architectures import vgg
from pipeline.records import rundir
from pipeline.training.checkpoint import CheckpointInfo
from pipeline.training.saver import Saver

NETWORKS = {
    "vgg_small": lambda: vgg([[32, 32], [64, 64], [128, 128]], 10),
    "resnet18": lambda: resnet18(num_classes=10),
    "resnet50": lambda: resnet50(num_classes=1000),
}
SETTINGS = Checkpoint(interval="auto", keep=3, interruption_hours=4.0)
BATCH = 16
TURN = 12.0  # seconds of a turn


class Steps:
    """A training of one network, without a pipeline around it."""

    def __init__(self, name: str, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = NETWORKS[name]()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.images, self.labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
        self.costs: list[float] = []
        self.done = 0
        self.saver = Saver(
            folder, SETTINGS, lambda: None, lambda _, seconds: self.costs.append(seconds)
        )

    def train(self, seconds: float, save: bool) -> float:
        """Train for some seconds; return the steps per second, including the time of the save."""
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            cross_entropy(self.model(self.images), self.labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            steps += 1
            if save and steps == 1:
                self.save()
        self.saver.wait()
        return steps / (time.perf_counter() - start)

    def save(self) -> float:
        """Save once; return the seconds during which the training waited for it."""
        self.done += 1
        start = time.perf_counter()
        facts = CheckpointInfo(
            step=self.done,
            epoch=0,
            attempt=1,
            world_size=1,
            boundary=False,
            history=0,
            growth=0,
            identity={},
        )
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.saver.save(facts, state)
        return time.perf_counter() - start

    @property
    def megabytes(self) -> float:
        """Return the size of weights and buffers, MB."""
        tensors = self.model.state_dict().values()
        return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    saving = [measure(name, options.rounds) for name in NETWORKS]
    resuming = resume()
    show(saving, resuming)
    if options.json:
        report = {"saving": saving, "resuming": resuming}
        evidence.write(options.json, report)


def measure(name: str, rounds: int) -> dict:
    """Return the cost of saving one network."""
    outputs = PROJECT / "outputs"  # on a disk; the temporary folder may be in memory
    outputs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=outputs) as folder:
        steps = Steps(name, Path(folder))
        steps.train(2, save=True)  # warm-up; its save sets the first interval
        held_up = []
        for _ in range(3):
            held_up.append(steps.save())
            steps.saver.wait()
        lost = []
        for number in track(range(rounds), name):
            turns = {}
            for save in (True, False) if number % 2 else (False, True):
                turns[save] = steps.train(TURN, save)
            lost.append(TURN * (1 - turns[True] / turns[False]))
        interval = steps.saver.automatic_interval()
    return {
        "network": name,
        "megabytes": steps.megabytes,
        "interval_seconds": interval,
        "held_up_seconds": statistics.median(held_up),
        "save_seconds": statistics.median(steps.costs),
        "lost_seconds": statistics.median(lost),
        "lost_seconds_each": lost,
        "lost_share": statistics.median(lost) / interval,
    }


def resume() -> dict:
    """Return the seconds from the start of an interrupted training to its first new step."""
    with tempfile.TemporaryDirectory() as folder:
        finished = launch(Path(folder) / "a", ["cluster.processes_per_node=2", "train.epochs=8"])
        stage = copy_question(finished, Path(folder) / "b")
        command = [sys.executable, "-m", "pipeline.run", str(stage)]
        for interrupted in (True, False):
            process = subprocess.Popen(
                command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while interrupted and not rows(stage / rundir.HISTORY):
                time.sleep(0.05)
            if interrupted:
                process.send_signal(signal.SIGTERM)
            process.wait()
        (first,) = [
            row for row in rows(stage / rundir.EVENTS)
            if row["event"] == "first_step" and row["attempt"] == 2
        ]  # fmt: skip
        return first["seconds"]


def show(saving: list[dict], resuming: dict) -> None:
    table = Table("network", "MB", "held up", "save", "lost per save", "interval", "lost")
    for row in saving:
        table.add_row(
            row["network"], f"{row['megabytes']:.0f}", f"{row['held_up_seconds']:.3f} s",
            f"{row['save_seconds']:.2f} s", f"{row['lost_seconds']:.2f} s",
            f"{row['interval_seconds']:.0f} s", f"{100 * row['lost_share']:.2f} %",
        )  # fmt: skip
    console = Console()
    console.print(table)
    parts = ", ".join(f"{name} {seconds} s" for name, seconds in resuming.items())
    console.print(f"resuming: first new step after {sum(resuming.values()):.1f} s ({parts})")


if __name__ == "__main__":
    main()
