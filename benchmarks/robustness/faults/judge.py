"""Judge the end of a disturbed command: its output, and the files that it left."""

from pathlib import Path

from safetensors.torch import load_file

from benchmarks.chaos import differences
from benchmarks.faults.trial import Case
from pipeline.records import rundir
from pipeline.tracking import session

HOUR = 3600
OURS = (rundir.LOCK, session.LOCK)
SAME = {
    "prep": "data/manifest.json",
    "fuse": "model.safetensors",
    "eval": "predictions.safetensors",
}


def last_line(log: Path, disk: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() or [""]
    return lines[-1].replace(str(disk), "DISK")


def output_faults(case: Case, code: int, log: Path, disk: Path) -> list[str]:
    """Return the errors in the output of a disturbed command and its stages."""
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
    """Return temporary and empty files, except logs, locks and files of W&B's client.

    `pipeline.sync` writes the files of W&B's client again.
    """
    wrong = []
    for path in root.rglob("*"):
        others = {"logs", "wandb", "wandb.log", *OURS} & set(path.parts)
        if path.is_file() and not others:
            if path.name.startswith("."):
                wrong.append(f"left: {path.relative_to(root)}")
            elif not path.stat().st_size and path.suffix != ".jsonl":  # may have no row yet
                wrong.append(f"empty: {path.relative_to(root)}")
    return wrong


def strange(looks: list[dict]) -> list[str]:
    """Return impossible reports of `status`."""
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
    """Return the differences between a finished stage and the original, except measured times."""
    one, other = (base / "runs" / "faults" / begin for base in (original, root))
    if not (other / rundir.RESULT).exists():
        return ["no result"]
    found = differences(one, other) if begin == "train" else []
    if begin in SAME:
        ours, theirs = (_content(stage / SAME[begin]) for stage in (one, other))
        found += [] if ours == theirs else [SAME[begin]]
    return found + ([] if (other.parent / "report.html").exists() else ["no report"])


def _content(path: Path) -> dict:
    """Return a file's content; of a tensor file only the tensors: its header has measurements."""
    if path.suffix == ".json":
        return rundir.read_json(path)
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}
