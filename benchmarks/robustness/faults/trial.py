"""Run one disturbed command: mount its disk, start it, watch it, and wait for its end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import PROJECT
from benchmarks.killing import alive_after
from benchmarks.soak import below
from pipeline.config.base import STAGE_NAMES

DISK = 128  # size of the disk, MiB
PAGE = 4096  # page of a file system, bytes
LIMIT = 300.0  # longest time of a launch, seconds


@dataclass(kw_only=True)
class Trial:
    """A running launch, on a disk of its own."""

    disk: Path
    process: subprocess.Popen[bytes]
    original: Path  # the root of the undisturbed run
    looks: list[dict] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.disk / "outputs"

    def stage(self, name: str) -> Path | None:
        """Return the directory of a stage; None while it does not exist."""
        return next(iter((self.root / "stages").glob(f"{name}-*")), None)

    def wait_for(self, stage: str, *paths: str) -> None:
        """Wait until all these paths exist in the directory of a stage."""
        until = time.monotonic() + LIMIT
        while time.monotonic() < until and self.process.poll() is None:
            place = self.stage(stage)
            if place and all(any(place.glob(path)) for path in paths):
                return
            time.sleep(0.001)
        raise SystemExit(f"error: {stage} never had {', '.join(paths)}; see {self.disk.parent}")

    def fill(self, left: int) -> None:
        """Fill the disk until `left` bytes are free."""
        with (self.disk / "ballast").open("ab") as ballast:
            block = DISK * 2**20
            while block >= PAGE:
                try:
                    if os.statvfs(self.disk).f_bavail * PAGE - left < block:
                        raise OSError
                    end = os.fstat(ballast.fileno()).st_size
                    os.posix_fallocate(ballast.fileno(), end, block)
                except OSError:  # other processes write meanwhile
                    block //= 2

    def status(self) -> None:
        """Record the output of `status` for the run."""
        words = ["status", "faults", "--json", "--root", str(self.root)]
        done = subprocess.run(command(*words), cwd=PROJECT, capture_output=True)
        self.looks.append(json.loads(done.stdout)["runs"][0])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault: the first stage that has to run, the fault itself, and its repair."""

    begin: str = "prep"
    disturb: Callable[[Trial], None]
    mend: Callable[[Trial], None] = lambda trial: (trial.disk / "ballast").unlink()
    code: int = 2  # expected exit code of the disturbed launch
    words: tuple[str, ...] = ()  # further settings
    count: int = 1  # number of processes
    disk: str = "tmpfs"
    launch: bool = True  # otherwise the command is `compare --html`


def command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"pipeline.{module}", *words]


@contextmanager
def mounted(disk: Path, kind: str) -> Iterator[Path]:
    """Mount an empty file system."""
    disk.mkdir()
    image = disk.with_suffix(".img")
    if kind == "ext4":
        with image.open("wb") as file:
            file.truncate(DISK * 2**20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        options = ["-o", "loop,errors=remount-ro", image]
    else:
        options = ["-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs"]
    subprocess.run(["mount", *options, disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
        disk.rmdir()
        image.unlink(missing_ok=True)


def copy(original: Path, root: Path, begin: str) -> None:
    """Copy a finished run without the results of the stages from `begin` on."""
    index = STAGE_NAMES.index(begin) if begin else len(STAGE_NAMES)
    if not index:
        root.mkdir()
        return

    def later(folder: str, names: list[str]) -> set[str]:
        if Path(folder).parent != original and Path(folder).parent.name != "runs":
            return set()
        gone = {"report.html", *STAGE_NAMES[index:]}
        return {name for name in names if name.partition("-")[0] in gone}

    shutil.copytree(original, root, symlinks=True, ignore=later)
    subprocess.run(["sync", "--file-system", root], check=True)


def start(words: list[str], disk: Path, original: Path, log: Path, filled: bool) -> Trial:
    """Start a command, on a full disk if `filled`."""
    trial = Trial(disk=disk, process=None, original=original)  # type: ignore[arg-type]
    if filled:
        trial.fill(0)
    with log.open("wb") as output:
        trial.process = subprocess.Popen(
            command(*words), cwd=PROJECT, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    return trial


def finish(trial: Trial) -> tuple[int, list[str]]:
    """Wait for a command; return its exit code, and errors about its processes."""
    everyone = below(trial.process.pid)
    try:
        code = trial.process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(trial.process.pid, signal.SIGKILL)
        return trial.process.wait(), ["does not end"]
    left = alive_after(everyone, 20.0)
    return code, [f"{left} processes left behind"] if left else []
