"""Measure what W&B costs a training, and the time to send many runs to a server on loopback.

One small training runs with tracking=online on all cores. Its follower, with wandb's own process,
is stopped and continued in turns of some seconds. The ratio compares the mean seconds of a step in
two neighbouring turns; its median over all pairs is reported, with a 95 % interval by bootstrap.
The number of cores that the follower's processes keep busy is a less noisy measure of the same
cost. Start-up is the time that the training waits until its follower is started. Then pipeline.sync
sends 200 run directories, twice, and a run is interrupted at random ten times, once tracked online
and once offline.

    python -m benchmarks.tracking --json benchmarks/results/tracking.json
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import evidence
from benchmarks.killing import children
from pipeline import tracking
from pipeline.config import Wandb
from pipeline.records import rundir
from pipeline.tracking import rows
from tests.launcher import PROJECT, Launcher
from tests.pipeline.tracking.recorder import Recorder
from tests.runs import make_run

TURN = 6.0  # seconds of a turn; a follower reads the files every 5 s


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="pairs of turns (default: 20)")
    parser.add_argument("--runs", type=int, default=200, help="that are sent (default: 200)")
    parser.add_argument("--kills", type=int, default=10, help="of a run (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tracking-") as folder:
        report = {
            "step": step(Path(folder) / "step", options.rounds),
            "start_seconds": round(start(Path(folder) / "start"), 4),
            "sync": sync(Path(folder) / "sync", options.runs),
            "interrupted": {
                mode: interrupted(Path(folder) / mode, mode, options.kills)
                for mode in ("online", "offline")
            },
        }
    show(report)
    if options.json:
        evidence.write(options.json, report)
    sent = report["sync"]["complete"] == report["sync"]["sent_once"] == options.runs
    return 0 if sent and all(map(is_right, report["interrupted"].values())) else 1


def step(root: Path, rounds: int) -> dict:
    """Return the ratio of the seconds of a step with a working and with a stopped follower."""
    launch = Launcher(root)
    history = launch.root / "runs" / "x" / "train" / rundir.HISTORY
    with Recorder() as recorder:
        training = subprocess.Popen(
            launch.command(
                "stage.run=[prep,train]", "tracking=online", "train.epochs=100000",
                "method=plain", "name=x", "checkpoint.interval=10 minutes",
            ),
            cwd=PROJECT, env=recorder.environment(), stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not any(run.steps for run in list(recorder.runs.values())):
                assert training.poll() is None
                time.sleep(0.1)
            (follower,) = _pids("-f", f"pipeline.tracking {root}")
            family = [follower, *_pids("-P", str(follower))]
            begun, used = time.monotonic(), _cpu_seconds(family)
            turns = list(_turns(history, family, rounds))
            cores = (_cpu_seconds(family) - used) / (time.monotonic() - begun)
            arrived = sum(len(run.steps) for run in recorder.runs.values())
        finally:
            training.send_signal(signal.SIGINT)
            training.wait()
    assert arrived > 100
    ratios = [working / stopped for stopped, working in turns]
    chance = random.Random(0)
    medians = sorted(
        statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(10_000)
    )
    return {
        "ratio": round(statistics.median(ratios), 4),
        "interval": [round(medians[250], 4), round(medians[-250], 4)],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cores_used": round(cores, 4),
        "step_ms": round(1000 * statistics.median(stopped for stopped, _ in turns), 2),
    }


def _pids(*query: str) -> list[int]:
    found = subprocess.run(["pgrep", *query], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def _cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _turns(history: Path, followers: list[int], rounds: int):
    """Yield the mean seconds of a step, first with the followers stopped, then at work."""
    for _ in track(range(rounds), description="training"):
        pair = []
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in followers:
                os.kill(pid, number)
            time.sleep(0.5)  # until the rows of the turn before are written
            before = _steps(history)[-1]["step"]
            time.sleep(TURN)
            mine = [row["step_seconds"] for row in _steps(history) if row["step"] > before]
            if not mine:
                raise SystemExit(f"no step in {TURN:.0f} s: other work takes this machine")
            pair.append(statistics.fmean(mine))
        yield pair


def _steps(history: Path) -> list[dict]:
    return [row for row in rundir.read_lines(history) if row["kind"] == "step"]


def start(root: Path) -> float:
    """Return the seconds that a training waits for the start of its follower."""
    run = make_run(root, "one")
    begun = time.perf_counter()
    followers = tracking.follow(run, Wandb(mode="online", project="p", entity=None))
    taken = time.perf_counter() - begun
    for follower in followers:
        follower.kill()
        follower.wait()
    return taken


def sync(root: Path, count: int) -> dict:
    """Return the seconds to send many runs, and to find that nothing is new."""
    for number in range(count):
        make_run(root, f"r{number:03d}", seed=number)
    command = [sys.executable, "-m", "pipeline.sync", "--root", str(root)]
    taken = []
    with Recorder() as recorder:
        for _ in range(2):
            begun = time.perf_counter()
            subprocess.run(command, cwd=PROJECT, env=recorder.environment(), check=True)
            taken.append(time.perf_counter() - begun)
        complete = [run.steps == [1, 2, 3, 4, 5, 6] for run in recorder.runs.values()]
        once = [len(run.exits) == 1 for run in recorder.runs.values()]
    return {
        "runs": count, "complete": sum(complete), "sent_once": sum(once),
        "seconds": round(taken[0], 1), "again_seconds": round(taken[1], 1),
    }  # fmt: skip


def interrupted(root: Path, mode: str, kills: int) -> dict:
    """Interrupt a run at random until it is done; return the data of it that W&B has.

    Interruptions are Ctrl-C, a signal to end, or kill -9 of the launch, of everything below it, or
    of the follower.
    """
    chance = random.Random(mode)
    words = ("name=x", f"tracking={mode}", "train.epochs=30", "checkpoint.interval=20 steps")
    launch, log = Launcher(root), []
    with Recorder() as recorder:
        while True:
            process = subprocess.Popen(
                launch.command(*words), cwd=PROJECT, env=recorder.environment(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            if len(log) < kills:
                time.sleep(chance.uniform(3, 14))
                if process.poll() is None:
                    log.append(_interrupt(process, root, chance))
                    continue
            if process.wait() == 0:
                break
            time.sleep(1)  # refused, because processes that the kill left have not ended yet
        run = launch.root / "runs" / "x"
        if mode == "offline":
            (directory,) = (run / "wandb").glob("offline-run-*")
            client = str(Path(sys.executable).with_name("wandb"))
            subprocess.run(
                [client, "sync", directory], env=recorder.environment(), cwd=run, check=True
            )
    (arrived,) = recorder.runs.values()
    steps = [row["step"] for row in _steps(run / "train" / rundir.HISTORY)]
    return {
        "interruptions": log,
        "same_id": arrived.name == rundir.read_json(run / "run.json")["wandb"]["id"],
        "steps": len(steps),
        "each_step_once": arrived.steps == steps == list(range(1, len(steps) + 1)),
        "summary_is_result": rows.results(run).items() <= arrived.summary.items(),
        "state": arrived.state,
    }


def is_right(seen: dict) -> bool:
    """Whether an interrupted run is a single run that has each step once and correct numbers."""
    return (
        seen["same_id"] and seen["each_step_once"] and seen["summary_is_result"]
        and seen["state"] == "finished"
    )  # fmt: skip


def _interrupt(process: subprocess.Popen, root: Path, chance: random.Random) -> str:
    """Interrupt a launch in one of five ways; return the name of the way."""
    way = chance.choice(["Ctrl-C", "TERM", "kill -9 launch", "kill -9 all", "kill -9 follower"])
    if way == "kill -9 follower":
        found = subprocess.run(
            ["pgrep", "-f", f"pipeline.tracking {root}"], capture_output=True, text=True
        )
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        process.send_signal(signal.SIGINT)
    elif way == "kill -9 all":
        for pid in _below(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    else:
        numbers = {"Ctrl-C": signal.SIGINT, "TERM": signal.SIGTERM}
        process.send_signal(numbers.get(way, signal.SIGKILL))
    process.wait()
    return way


def _below(pid: int) -> list[int]:
    return [pid, *(deeper for child in children(pid) for deeper in _below(child))]


def show(report: dict) -> None:
    """Print the numbers."""
    table = Table("", "")
    low, high = report["step"]["interval"]
    ratio = f"{report['step']['ratio']:.3f} (95 %: {low:.3f} to {high:.3f})"
    table.add_row("a step, follower at work against stopped", ratio)
    table.add_row("step, ms", str(report["step"]["step_ms"]))
    table.add_row("cores the follower used", str(report["step"]["cores_used"]))
    table.add_row("start of the follower, s", f"{report['start_seconds']:.3f}")
    for name, value in report["sync"].items():
        table.add_row(f"sync: {name.replace('_', ' ')}", str(value))
    for mode, seen in report["interrupted"].items():
        verdict = "one run, each step once, summary as results" if is_right(seen) else str(seen)
        table.add_row(f"{len(seen['interruptions'])} interruptions, {mode}", verdict)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
