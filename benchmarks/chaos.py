"""Interrupt a training again and again, and compare it to the bit with one left alone.

A small training (growing, cutting, averaged weights, DALI augmentation, several processes) runs as
`python -m pipeline.run DIR`, the command of every job, and is killed at random: SIGKILL or SIGTERM,
to rank 0, another rank, their parent or all of them; while it starts, steps, saves, validates, or
adjusts its structure. It is started again each time until it is done. Then its
weights, its history and its growth must be those of the undisturbed training, and it begins anew
until all kills are spent.

    python -m benchmarks.chaos --kills 200 --seed 1 --json benchmarks/results/chaos.json
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import load_file

from benchmarks import evidence
from pipeline.records import rundir

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "stage.run=[prep,train]",
    "tracking=disabled",
    "train.deterministic=true",
    "train.ema=0.9",
    "train.epochs=30",
    "method.adjust_interval=4",
    "method.last_adjust_epoch=24",
    "method.cut_std=0",
    "method.cut_ratio=10",
    "checkpoint.interval=5 steps",
)
MOMENTS = ("start", "step", "save", "validate", "adjust")
VICTIMS = ("rank 0", "other rank", "parent", "all")
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
}  # may differ
PATIENCE = 12.0  # seconds to wait for a moment before killing anyway
ENDING = 120.0  # seconds in which a process that was told to stop must be gone


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
    """Spend `kills` kills on one training after the other; return the log and the verdict."""
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
    """Return a fresh directory of the same question below another root, its data in place."""
    directory = root / "stages" / stage.name
    directory.mkdir(parents=True)
    for name in (rundir.STAGE, rundir.WHERE):
        shutil.copy(stage / name, directory)
    for prep in stage.parent.glob("prep-*"):
        (directory.parent / prep.name).symlink_to(prep)
    return directory


def disturb(stage: Path, kills: int, chance: random.Random):
    """Run a training to its end, through at most `kills` kills; yield what each one did."""
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


class Attempt:
    """One process of `python -m pipeline.run` with everything below it."""

    def __init__(self, stage: Path) -> None:
        self.stage, self.begun = stage, time.monotonic()
        (stage / "logs").mkdir(exist_ok=True)
        with (stage / "logs" / "chaos.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.run", str(stage)],
                cwd=PROJECT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self, chance: random.Random) -> dict | None:
        """Wait for a random moment and kill; return what happened, None if it ended before."""
        moment, victim = chance.choice(MOMENTS), chance.choice(VICTIMS)
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        self._wait_for(moment, chance)
        targets, everyone = self._pids(victim), self._pids("all")
        if self.process.poll() is not None or not targets:
            return None
        step, doing = self._progress()
        for pid in targets:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        code = self.process.wait(ENDING)
        left_behind = alive_after(everyone, ENDING)
        return {
            "moment": moment, "victim": victim, "signal": signal.Signals(number).name,
            "after_seconds": round(time.monotonic() - self.begun, 2), "step": step,
            "doing": doing, "exit_code": code, "left_behind": left_behind,
            **self._repeated(),
        }  # fmt: skip

    def _repeated(self) -> dict:
        """Return how many of the steps of this attempt the next one has to do again."""
        events = rows(self.stage / rundir.EVENTS)
        stopped = bool(events) and events[-1]["event"] == "stopped"
        mine = [e for e in events if e["time"] > time.time() - time.monotonic() + self.begun]
        if not any(event["event"] == "first_step" for event in mine):
            return {"repeated": 0, "stopped": stopped}
        done = max((r["step"] for r in rows(self.stage / rundir.HISTORY)), default=0)
        done = max(done, self._progress()[0])
        seals = (self.stage / "checkpoints").glob("step-*.json")
        saved = max((json.loads(seal.read_text())["step"] for seal in seals), default=0)
        return {"repeated": done - saved, "stopped": stopped}

    def _wait_for(self, moment: str, chance: random.Random) -> None:
        until = time.monotonic() + PATIENCE
        if moment == "start":
            time.sleep(chance.uniform(0, 4))
            return
        while time.monotonic() < until and self.process.poll() is None:
            if self._is(moment):
                if moment != "save":
                    time.sleep(chance.uniform(0, 1.0 if moment == "step" else 0.2))
                return
            time.sleep(0.001)

    def _is(self, moment: str) -> bool:
        if moment == "save":
            return any((self.stage / "checkpoints").glob(".step-*"))
        at, doing = self._progress(fresh=True)
        if moment == "step":
            return at > 0
        return doing.endswith({"validate": "validating", "adjust": "adjusting"}[moment])

    def _progress(self, fresh: bool = False) -> tuple[int, str]:
        """Return the step and what is done; with `fresh` nothing that an earlier attempt wrote."""
        try:
            row = json.loads((self.stage / rundir.PROGRESS).read_text())
        except (OSError, ValueError):
            return 0, ""
        age = time.time() - row["time"]
        if fresh and age > time.monotonic() - self.begun:
            return 0, ""
        return row["done"], row["text"]

    def _pids(self, victim: str) -> list[int]:
        ranks = {pid: rank(pid) for pid in children(self.process.pid)}
        return {
            "rank 0": [pid for pid, number in ranks.items() if number == 0],
            "other rank": [pid for pid, number in ranks.items() if number],
            "parent": [self.process.pid],
            "all": [self.process.pid, *ranks],
        }[victim]


def alive_after(pids: list[int], seconds: float) -> int:
    """Return how many of the processes are still there after some seconds, as a rule at once 0."""
    until = time.monotonic() + seconds
    while alive := [pid for pid in pids if command(pid)]:  # a zombie has no command line
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return len(alive)


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def rank(pid: int) -> int | None:
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[5:])
    return None


def rows(path: Path) -> list[dict]:
    return list(rundir.read_lines(path))


def differences(one: Path, other: Path) -> list[str]:
    """Return in what two finished trainings differ; times may."""
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
