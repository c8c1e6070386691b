"""Define the faults: the moment and the kind of each, and its repair."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.trial import PAGE, Case, Trial
from benchmarks.soak import below
from pipeline.records import rundir

STOPPED = 60.0  # seconds that processes are stopped


def full(stage: str, largest: str, *moment: str) -> Callable[[Trial], None]:
    """Fill the disk while a stage runs, and leave room for half of its largest file."""

    def disturb(trial: Trial) -> None:
        trial.wait_for(stage, *(moment or ("attempt",)))
        sizes = [path.stat().st_size for path in trial.original.glob(largest)]
        trial.fill(max(sizes, default=0) // 2 // PAGE * PAGE)

    return disturb


def full_at_close(trial: Trial) -> None:
    trial.wait_for("latency", rundir.RESULT)
    trial.fill(0)


def full_at_mirror(trial: Trial) -> None:
    report = trial.root / "runs" / "faults" / "report.html"
    while not report.exists() and trial.process.poll() is None:
        time.sleep(0.001)
    trial.fill(0)


def read_only(stage: str, *moment: str) -> Callable[[Trial], None]:
    """Make the kernel find an error in the file system, so that it becomes read-only."""

    def disturb(trial: Trial) -> None:
        trial.wait_for(stage, *(moment or ("attempt",)))
        device = subprocess.check_output(
            ["findmnt", "-no", "SOURCE", trial.disk], text=True
        ).strip()
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("1")

    return disturb


def mount_again(trial: Trial) -> None:
    image = trial.disk.with_suffix(".img")
    subprocess.run(["umount", trial.disk], check=True)
    subprocess.run(["fsck.ext4", "-fy", image], stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, trial.disk], check=True)


def removed(what: str) -> Callable[[Trial], None]:
    """Remove a directory while the run trains."""

    def disturb(trial: Trial) -> None:
        trial.wait_for("train", "checkpoints/step-*.json")
        for path in [trial.root] if what == "root" else trial.root.glob(what):
            while path.exists():  # a process that writes into it may be faster
                shutil.rmtree(path, ignore_errors=True)

    return disturb


def stopped(who: str) -> Callable[[Trial], None]:
    """Stop the launcher, the training processes, or all of them, and then continue them."""

    def disturb(trial: Trial) -> None:
        trial.wait_for("train", "checkpoints/step-*.json")
        launcher, run, *workers = below(trial.process.pid)
        victims = {"launcher": [launcher], "worker": workers, "all": [launcher, run, *workers]}
        for pid in victims[who]:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED)
        trial.status()
        for pid in reversed(victims[who]):
            os.kill(pid, signal.SIGCONT)

    return disturb


def nothing(trial: Trial) -> None:
    """Do nothing, because the disturbed run has continued by itself."""


FULL_TRAIN = full("train", "stages/train-*/checkpoints/*.safetensors", "checkpoints/step-*.json")
CASES = {
    "full: launch": Case(disturb=nothing),
    "full: prep": Case(disturb=full("prep", "data/*/*.tar")),
    "full: checkpoint": Case(begin="train", disturb=FULL_TRAIN),
    "full: checkpoint, two processes": Case(
        begin="train", disturb=FULL_TRAIN, count=2
    ),
    "full: fuse": Case(begin="fuse", disturb=full("fuse", "stages/fuse-*/*.safetensors")),
    "full: eval": Case(begin="eval", disturb=full("eval", "stages/eval-*/predictions.safetensors")),
    "full: latency": Case(
        begin="latency", disturb=full("latency", "stages/latency-*/latency.json")
    ),
    "full: report": Case(begin="latency", disturb=full_at_close),
    "full: W&B": Case(
        begin="latency", disturb=full_at_mirror, words=("tracking=offline",), code=0
    ),
    "full: compare --html": Case(begin="", disturb=nothing, launch=False),
    "read-only: train": Case(
        begin="train", disk="ext4", mend=mount_again,
        disturb=read_only("train", "checkpoints/step-*.json"),
    ),
    "read-only: fuse": Case(
        begin="fuse", disk="ext4", mend=mount_again, disturb=read_only("fuse"),
    ),
    "read-only: eval": Case(
        begin="eval", disk="ext4", mend=mount_again, disturb=read_only("eval"),
    ),
    "removed: stage": Case(begin="train", disturb=removed("stages/train-*"), mend=nothing),
    "removed: run": Case(begin="train", disturb=removed("runs/faults"), mend=nothing),
    "removed: root": Case(begin="train", disturb=removed("root"), mend=nothing),
    "stopped: worker": Case(begin="train", disturb=stopped("worker"), code=0, mend=nothing),
    "stopped: launcher": Case(begin="train", disturb=stopped("launcher"), code=0, mend=nothing),
    "stopped: all": Case(begin="train", disturb=stopped("all"), code=0, mend=nothing),
    "stopped: worker, hang_timeout 20 s": Case(
        begin="train", disturb=stopped("worker"), code=0, mend=nothing,
        words=("cluster.hang_timeout=20",),
    ),
    "stopped: all, two processes, hang_timeout 20 s": Case(
        begin="train", disturb=stopped("all"), code=0, mend=nothing,
        words=("cluster.hang_timeout=20",), count=2,
    ),
}  # fmt: skip
