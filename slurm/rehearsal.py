"""The command of the doctor's rehearsal: looks around on its node, counts, saves, can be resumed.

python -m slurm.rehearsal DIR
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from slurm.job import DONE, PROGRESS, STOPPED
from slurm.place import OWNER

STEPS = 40
PAUSE = 0.5  # seconds between two steps
TORCH = (
    "import torch; print(torch.__version__, 'sees', torch.cuda.device_count(), 'GPUs',"
    " *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))"
)
LOCK, NODE, COUNT, RESULT = "locked", "node.json", "count.json", "result.json"


def main(directory: Path) -> int:
    """Count to `STEPS`, from where an earlier attempt saved."""
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    write(directory / NODE, look_around(directory))
    count = read(directory / COUNT) or {"step": 0, "attempts": []}
    interrupted = bool(count["attempts"])
    count["attempts"].append({"job": os.environ[OWNER], "from": count["step"]})
    while count["step"] < STEPS:
        count["step"] += 1
        row = {"done": count["step"], "total": STEPS, "text": "", "time": time.time()}
        write(directory / PROGRESS, {**row, "saved": count["step"]})
        if stops:
            write(directory / COUNT, count)
            return STOPPED
        if not interrupted:  # it waits for that, and for nothing afterwards
            time.sleep(PAUSE)
    write(directory / RESULT, count)
    return DONE


def look_around(directory: Path) -> dict[str, Any]:
    """Return what a training would find on this node."""
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": output(sys.executable, "-c", TORCH),
        "gpus": output("nvidia-smi", "-L") if shutil.which("nvidia-smi") else "",
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "locked": _is_locked(directory / LOCK),
    }


def output(*command: str) -> str:
    """Return what a command prints, or the last line of its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within 90 s"
    return (done.stdout if done.returncode == 0 else done.stderr).strip().rpartition("\n")[2]


def _is_locked(path: Path) -> bool:
    """Whether the lock that the doctor holds is seen from here."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def write(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file under another name and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds, if it is there."""
    return dict(json.loads(path.read_text())) if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
