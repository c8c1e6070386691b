"""Full and read-only disks, vanished directories, stopped processes.

A small run of all stages (deterministic) is begun on a file system of its own and disturbed at a
chosen moment. It must end in one `error:` line that names a path, without a traceback and without
half-written files, or go on where the fault asks for no more. Then the fault is mended and the same
command is launched again: its weights, history, growth and predictions must be those of a run that
nothing disturbed.

    python -m benchmarks.faults /tmp/faults --json benchmarks/results/faults.json

It needs root, to mount file systems.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from benchmarks.chaos import alive_after, differences
from benchmarks.soak import below
from pipeline.config.base import STAGE_NAMES
from pipeline.records import outfile, rundir

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "name=faults", "model.widths=[[8],[16]]", "train.epochs=2", "train.deterministic=true",
    "method.adjust_interval=1", "method.last_adjust_epoch=1", "fuse.exports=[]",
    "eval.exports=false", "latency.batch_sizes=[1]", "latency.repeats=10", "latency.also=[]",
    "checkpoint.interval=2 steps",
)  # fmt: skip
DISK = 128  # MiB
PAGE = 4096  # of a file system, bytes
LIMIT = 300.0  # seconds for a launch
STOPPED = 60.0  # seconds
HOUR = 3600
SAME = {
    "prep": "data/manifest.json",
    "fuse": "model.safetensors",
    "eval": "predictions.safetensors",
}


@dataclass(kw_only=True)
class Trial:
    """One launch on a disk of its own, under way."""

    disk: Path
    process: subprocess.Popen[bytes]
    original: Path  # the root that nothing disturbed
    looks: list[dict] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.disk / "outputs"

    def stage(self, name: str) -> Path | None:
        """Return the directory of a stage once it is there."""
        return next(iter((self.root / "stages").glob(f"{name}-*")), None)

    def wait_for(self, stage: str, *paths: str) -> None:
        """Wait until all of these are in the directory of a stage."""
        until = time.monotonic() + LIMIT
        while time.monotonic() < until and self.process.poll() is None:
            place = self.stage(stage)
            if place and all(any(place.glob(path)) for path in paths):
                return
            time.sleep(0.001)
        raise SystemExit(f"error: {stage} never had {', '.join(paths)}; see {self.disk.parent}")

    def fill(self, left: int) -> None:
        """Leave some bytes of the disk."""
        with (self.disk / "ballast").open("ab") as ballast:
            block = DISK * 2**20
            while block >= PAGE:
                try:
                    if os.statvfs(self.disk).f_bavail * PAGE - left < block:
                        raise OSError
                    end = os.fstat(ballast.fileno()).st_size
                    os.posix_fallocate(ballast.fileno(), end, block)
                except OSError:  # others write meanwhile
                    block //= 2

    def status(self) -> None:
        """Note how `status` calls the run now."""
        words = ["status", "faults", "--json", "--root", str(self.root)]
        told = subprocess.run(command(*words), cwd=PROJECT, capture_output=True)
        self.looks.append(json.loads(told.stdout)["runs"][0])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault: from which stage on there is something to do, what happens, how it is mended."""

    begin: str = "prep"
    disturb: Callable[[Trial], None]
    mend: Callable[[Trial], None] = lambda trial: (trial.disk / "ballast").unlink()
    code: int = 2  # of the launch that is disturbed
    words: tuple[str, ...] = ()  # more settings
    count: int = 1  # processes
    disk: str = "tmpfs"
    launch: bool = True  # `compare --html` else


def command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"pipeline.{module}", *words]


# -- the faults -----------------------------------------------------------------------------------


def full(stage: str, largest: str, *moment: str) -> Callable[[Trial], None]:
    """Fill the disk while a stage runs, so that half of its largest file still goes onto it."""

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
    """Have the kernel find an error in the file system: it is read-only from then on."""

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
    subprocess.run(["fsck.ext4", "-p", image], stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, trial.disk], check=True)


def removed(what: str) -> Callable[[Trial], None]:
    """Remove a directory while the run trains."""

    def disturb(trial: Trial) -> None:
        trial.wait_for("train", "checkpoints/step-*.json")
        for path in [trial.root] if what == "root" else trial.root.glob(what):
            while path.exists():  # who writes into it may be faster
                shutil.rmtree(path, ignore_errors=True)

    return disturb


def stopped(who: str) -> Callable[[Trial], None]:
    """Stop the launcher, the processes that train, or all of them, and let them go on."""

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
    """Do nothing: what was disturbed has gone on by itself."""


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


# -- one case -------------------------------------------------------------------------------------


def run(name: str, case: Case, folder: Path, originals: dict[int, Path]) -> dict:
    """Disturb, judge, mend, launch again, judge."""
    original = originals[case.count]
    place = folder / name.partition(":")[0]
    with mounted(place, case.disk) as disk:
        copy(original, disk / "outputs", case.begin)
        page = disk / "page.html"
        words = ["launch", *settings(disk / "outputs", case.count), *asked(case), *case.words]
        if not case.launch:
            words = ["compare", "faults", "--html", str(page), "--root", str(disk / "outputs")]
        first = place.with_suffix(".first.log")
        trial = start(words, disk, original, first, case.disturb is nothing)
        case.disturb(trial)
        code, mine = finish(trial)
        found = {
            "case": name, "code": code, "last": last_line(first, disk),
            "faults": [*said(case, code, first, disk), *strange(trial.looks), *mine],
        }  # fmt: skip
        if trial.disk.exists() and code:
            found["faults"] += left_behind(trial.root)
        if code:
            case.mend(trial)
            second = place.with_suffix(".second.log")
            trial = start(words, disk, original, second, False)
            code, mine = finish(trial)
            found["faults"] += mine + (
                [f"again: exit {code}: {last_line(second, disk)}"] if code else []
            )
        if case.launch:
            found["faults"] += [
                f"differs: {what}" for what in differ(original, trial.root, case.begin)
            ]
        elif not page.exists():
            found["faults"].append("no page")
    return found


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
    """Copy a finished run without what the stages from `begin` on made of it."""
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
    """Start a command, on a full disk if so wanted."""
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
    """Wait for a command; return its exit code and what is wrong about its processes."""
    everyone = below(trial.process.pid)
    try:
        code = trial.process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(trial.process.pid, signal.SIGKILL)
        return trial.process.wait(), ["does not end"]
    left = alive_after(everyone, 20.0)
    return code, [f"{left} processes left behind"] if left else []


def last_line(log: Path, disk: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() or [""]
    return lines[-1].replace(str(disk), "DISK")


def said(case: Case, code: int, log: Path, disk: Path) -> list[str]:
    """Return what is wrong in what a disturbed command and its stages said."""
    text = log.read_text(errors="replace")
    found = [] if code == case.code else [f"exit {code}, not {case.code}"]
    if case.code == 2:
        errors = [line for line in text.splitlines() if line.startswith("error:")]
        if len(errors) != 1 or text.splitlines()[-1] != errors[0]:
            found.append(f"{len(errors)} error lines, or not at the end")
        elif str(disk) not in errors[0]:
            found.append("names no path")
    logs = sorted(disk.glob("outputs/stages/*/logs/attempt-???.log"))  # others lose the first
    for name, content in [("the launch", text), *((p.name, p.read_text()) for p in logs)]:
        if "Traceback" in content:
            found.append(f"a traceback in {name}")
        if content.count("error: ") > 1:
            found.append(f"{content.count('error: ')} errors in {name}")
    return found


def left_behind(root: Path) -> list[str]:
    """Return temporary and empty files."""
    wrong = []
    for path in root.rglob("*"):
        if path.is_file() and "logs" not in path.parts and path.name != rundir.LOCK:
            if path.name.startswith("."):
                wrong.append(f"left: {path.relative_to(root)}")
            elif not path.stat().st_size and path.suffix != ".jsonl":  # no row
                wrong.append(f"empty: {path.relative_to(root)}")
    return wrong


def strange(looks: list[dict]) -> list[str]:
    """Return what `status` said that cannot be."""
    found = []
    for look in looks:
        numbers = [look["lost_seconds"], look["gpu_hours"]]
        numbers += [stage["eta"] or 0 for stage in look["stages"]]
        if any(number < 0 or number > HOUR / 2 for number in numbers):
            found.append(f"status: lost {numbers[0]}, eta {max(numbers[2:])}")
        if look["state"] in ("stalled?", "failed", "damaged"):
            found.append(f"status: {look['state']}")
    return found


def differ(original: Path, root: Path, begin: str) -> list[str]:
    """Return in what a finished stage and that of the other run differ, measured times aside."""
    one, other = (base / "runs" / "faults" / begin for base in (original, root))
    if not (other / rundir.RESULT).exists():
        return ["no result"]
    found = differences(one, other) if begin == "train" else []
    if begin in SAME:
        ours, theirs = (_content(stage / SAME[begin]) for stage in (one, other))
        found += [] if ours == theirs else [SAME[begin]]
    return found + ([] if (other.parent / "report.html").exists() else ["no report"])


def _content(path: Path) -> dict:
    """Return what a file holds; of a file of tensors only these: its header has measured errors."""
    if path.suffix == ".json":
        return rundir.read_json(path)
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


# -- all of them ----------------------------------------------------------------------------------


def undisturbed(folder: Path, count: int) -> Path:
    """Run all stages in peace; return the root."""
    root = folder / f"undisturbed-{count}"
    some = [] if count == 1 else ["stage.run=[prep,train]"]
    words = command("launch", *settings(root, count), *some)
    subprocess.run(words, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    return root


def settings(root: Path, count: int) -> list[str]:
    """Return the settings of a run in some processes."""
    where = [f"cluster.processes_per_node={count}", f"root={root}"]
    return [*SETTINGS, "tracking=disabled", *where]


def asked(case: Case) -> list[str]:
    """Return which stages a case launches: no more than it disturbs."""
    return [f"stage.run=[{'prep,train' if case.begin == 'train' else case.begin}]"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the undisturbed runs, kept, and the disks")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root; use sudo, or a container")
    cases = {name: case for name, case in CASES.items() if options.only in name}
    if not cases:
        parser.error(f"--only {options.only} is in no case: {', '.join(CASES)}")
    options.folder.mkdir(exist_ok=True)
    folder = options.folder.resolve()
    counts = sorted({case.count for case in cases.values()})
    originals = {count: undisturbed(folder, count) for count in counts}
    found = []
    for name, case in cases.items():
        found.append(run(name, case, folder, originals))
        print(f"{name}: {'; '.join(found[-1]['faults']) or 'right'}: {found[-1]['last']}")
    show(found)
    if options.json:
        outfile.write(options.json, json.dumps(report(found), indent=2) + "\n")
    return 0 if not any(row["faults"] for row in found) else 1


def report(found: list[dict]) -> dict:
    words = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
    return {
        "date": date.today().isoformat(),
        "commit": subprocess.run(words, capture_output=True, text=True).stdout.strip(),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "cases": found,
    }


def show(found: list[dict]) -> None:
    """Print of each case how it ended, and what was wrong."""
    table = Table("case", "exit", "last line", "wrong")
    for row in found:
        table.add_row(row["case"], str(row["code"]), row["last"], "; ".join(row["faults"]))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
