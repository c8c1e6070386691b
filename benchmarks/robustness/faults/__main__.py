"""Test runs on full and read-only disks, with removed directories and stopped processes.

A small deterministic run of all stages is started on a file system of its own and disturbed at a
chosen moment. It must end with one `error:` line that names a path, without a traceback and without
half-written files, or continue if the fault permits that. Then the fault is repaired and the same
command is launched again. The weights, history, growth and predictions must equal those of an
undisturbed run.

    python -m benchmarks.faults /tmp/faults --json benchmarks/results/faults.json

The command needs root, to mount file systems.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import PROJECT, evidence
from benchmarks.faults.cases import CASES, nothing
from benchmarks.faults.judge import differ, last_line, left_behind, output_faults, strange
from benchmarks.faults.trial import Case, command, copy, finish, mounted, start

SETTINGS = (
    "name=faults", "model.widths=[[8],[16]]", "train.epochs=2", "train.deterministic=true",
    "method.adjust_interval=1", "method.last_adjust_epoch=1", "fuse.exports=[]",
    "eval.exports=false", "latency.batch_sizes=[1]", "latency.repeats=10", "latency.also=[]",
    "checkpoint.interval=2 steps",
)  # fmt: skip


def run(name: str, case: Case, folder: Path, originals: dict[int, Path]) -> dict:
    """Disturb a run, judge it, repair the fault, launch it again, and judge the result."""
    original = originals[case.count]
    place = folder / name.partition(":")[0]
    with mounted(place, case.disk) as disk:
        copy(original, disk / "outputs", case.begin)
        page = disk / "page.html"
        words = ["launch", *settings(disk / "outputs", case.count), *stages_of(case), *case.words]
        if not case.launch:
            words = ["compare", "faults", "--html", str(page), "--root", str(disk / "outputs")]
        first = place.with_suffix(".first.log")
        trial = start(words, disk, original, first, case.disturb is nothing)
        case.disturb(trial)
        code, mine = finish(trial)
        found = {
            "case": name, "code": code, "last": last_line(first, disk),
            "faults": [*output_faults(case, code, first, disk), *strange(trial.looks), *mine],
        }  # fmt: skip
        if trial.disk.exists() and code and case.disk != "ext4":  # ext4 is read-only then
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
            found["faults"] += left_behind(trial.root)
            found["faults"] += [
                f"differs: {what}" for what in differ(original, trial.root, case.begin)
            ]
        elif not page.exists():
            found["faults"].append("no page")
    return found


def undisturbed(folder: Path, count: int) -> Path:
    """Run all stages undisturbed; return the root."""
    root = folder / f"undisturbed-{count}"
    some = [] if count == 1 else ["stage.run=[prep,train]"]
    words = command("launch", *settings(root, count), *some)
    subprocess.run(words, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    return root


def settings(root: Path, count: int) -> list[str]:
    """Return the settings of a run in some processes."""
    where = [f"cluster.processes_per_node={count}", f"root={root}"]
    return [*SETTINGS, "tracking=disabled", *where]


def stages_of(case: Case) -> list[str]:
    """Return the settings for the stages that a case launches: no more than it needs."""
    return [f"stage.run=[{'prep,train' if case.begin == 'train' else case.begin}]"]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        evidence.write(options.json, {"cases": found})
    return 0 if not any(row["faults"] for row in found) else 1


def show(found: list[dict]) -> None:
    """Print the outcome of each case, and its errors."""
    table = Table("case", "exit", "last line", "wrong")
    for row in found:
        table.add_row(row["case"], str(row["code"]), row["last"], "; ".join(row["faults"]))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
