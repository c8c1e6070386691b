"""Interrupt a training again and again, and compare it bit by bit with an undisturbed one.

A small training (growing, cutting, averaged weights, DALI augmentation, several processes) runs as
`python -m pipeline.run DIR`, the command of every job, and is killed at random: by SIGKILL or
SIGTERM, to rank 0, another rank, their parent or all of them, while it starts, steps, saves,
validates, or adjusts its structure. It is restarted after each kill until it is done. Then its
weights, history and growth must equal those of the undisturbed training. Further trainings follow
until all kills are used up.

    python -m benchmarks.chaos --kills 200 --seed 1 --json benchmarks/results/chaos.json
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import load_file

from benchmarks import PROJECT, evidence
from benchmarks.killing import MOMENTS, Attempt, rows
from pipeline.records import rundir

SETTINGS = (
    "stage.run=[prep,train]",
    "tracking=disabled",
    "train.deterministic=true",
    "train.ema=0.9",
    "train.epochs=30",
    "method.adjust_interval=4",
    "method.last_adjust_epoch=24",
    "method.cut_ratio=10",
    "checkpoint.interval=5 steps",
)
MEASURED = {
    "step_seconds",
    "data_seconds",
    "seconds",
    "images_per_s",
    "gpu_memory_gib",
    "step_cost",
    "compile_seconds",
    "plain_steps",
    "adjusting_steps",
}  # these may differ


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--precision", default="float32", help="or bfloat16, float16")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        settings = [
            f"cluster.processes_per_node={options.processes}",
            f"train.precision={options.precision}",
        ]
        report = rounds(Path(folder), options.kills, options.seed, settings)
    report = {"precision": options.precision, "processes": options.processes, **report}
    show(report)
    if options.json:
        evidence.write(options.json, report)
    return 0 if report["equal"] == report["rounds"] else 1


def rounds(folder: Path, kills: int, seed: int, settings: list[str]) -> dict:
    """Spread `kills` kills over one training after the other; return the log and the verdict."""
    undisturbed = launch(folder / "undisturbed", settings)
    chance = random.Random(seed)
    log: list[dict] = []
    verdicts: list[list[str]] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("kills", total=kills)
        while len(log) < kills:
            root = folder / f"round-{len(verdicts)}"
            disturbed = copy_question(undisturbed, root)
            for kill in disturb(disturbed, kills - len(log), chance):
                log.append({"round": len(verdicts), **kill})
                bar.advance(task)
            verdicts.append(differences(undisturbed, disturbed))
            shutil.rmtree(root)
    equal = sum(not verdict for verdict in verdicts)
    return {
        "kills": len(log),
        "seed": seed,
        "rounds": len(verdicts),
        "equal": equal,
        "differences": verdicts,
        "log": log,
    }


def launch(root: Path, settings: list[str]) -> Path:
    """Run the undisturbed training; return its stage directory."""
    command = [sys.executable, "-m", "pipeline.launch", f"root={root}", "name=chaos"]
    subprocess.run(
        [*command, *SETTINGS, *settings], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL
    )
    return (root / "runs" / "chaos" / "train").resolve()


def copy_question(stage: Path, root: Path) -> Path:
    """Return a new directory of the same question below another root, with its data in place."""
    directory = root / "stages" / stage.name
    directory.mkdir(parents=True)
    for name in (rundir.STAGE, rundir.WHERE):
        shutil.copy(stage / name, directory)
    for prep in stage.parent.glob("prep-*"):
        (directory.parent / prep.name).symlink_to(prep)
    return directory


def disturb(stage: Path, kills: int, chance: random.Random):
    """Run a training to its end, through at most `kills` kills; yield the effect of each."""
    attempt = Attempt(stage)
    while True:
        if kills == 0:
            attempt.process.wait()
        if attempt.process.poll() is not None:
            if (stage / rundir.RESULT).exists():
                return
            attempt = Attempt(stage)
            continue
        kill = attempt.kill(chance)
        if kill:
            kills -= 1
            yield kill


def differences(one: Path, other: Path) -> list[str]:
    """Return the differences between two finished trainings, except times."""
    found = []
    ours, theirs = (load_file(stage / "model.safetensors") for stage in (one, other))
    if ours.keys() != theirs.keys():
        found.append("structure")
    else:
        found += [f"weight {k}" for k in ours if not torch.equal(ours[k], theirs[k])]
    for name in (rundir.HISTORY, rundir.GROWTH):
        if [exact(row) for row in rows(one / name)] != [exact(row) for row in rows(other / name)]:
            found.append(name)
    return found


def exact(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in MEASURED and not k.startswith("step_seconds")}


def show(report: dict) -> None:
    log = report["log"]
    table = Table("moment", "kills", "SIGKILL", "SIGTERM", "steps repeated (mean, most)")
    for moment in (*MOMENTS, "all"):
        part = [k for k in log if moment in (k["moment"], "all")]
        if part:
            signals = Counter(kill["signal"] for kill in part)
            again = [kill["repeated"] for kill in part]
            counts = [str(len(part)), str(signals["SIGKILL"]), str(signals["SIGTERM"])]
            table.add_row(moment, *counts, f"{sum(again) / len(again):.1f}, {max(again)}")
    console = Console()
    console.print(table)
    stopped = [kill["repeated"] for kill in log if kill["stopped"]]
    console.print(f"{len(stopped)} signalled stops, {sum(stopped)} steps repeated after them")
    left = sum(kill["left_behind"] for kill in log)
    console.print(f"{left} processes left behind")
    console.print(
        f"{report['kills']} kills in {report['rounds']} trainings; "
        f"{report['equal']} of {report['rounds']} equal to the undisturbed one to the last bit"
    )


if __name__ == "__main__":
    sys.exit(main())
