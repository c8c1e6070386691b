"""Run the command of the doctor's rehearsal job: inspect the node, count, save, resume.

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
from dataclasses import asdict, dataclass
from pathlib import Path

from slurm import files
from slurm.job import DONE, STOPPED
from slurm.place import OWNER
from slurm.records import PROGRESS

STEPS = 40
PAUSE = 0.5  # seconds per step
TORCH = (
    "import torch; print(torch.__version__, 'sees', torch.cuda.device_count(), 'GPUs',"
    " *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))"
)
LOCK, NODE, COUNT, RESULT = "locked", "node.json", "count.json", "result.json"


@dataclass(frozen=True, kw_only=True)
class Node:
    """The facts about a node that matter to a training; `locked`: it sees the doctor's lock."""

    host: str
    python: str
    torch: str
    gpus: str
    visible: str | None
    locked: bool


class Seen:
    """The view that this host has of a file which a node replaces repeatedly."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.torn = False
        self.lag = 0.0

    def saved(self) -> int:
        """Return the job's saved point; record reads that were half-written or late."""
        try:
            row = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            self.torn = True
            return 0
        self.lag = max(self.lag, time.time() - row["time"] - PAUSE)
        return int(row["saved"])


def main(directory: Path) -> int:
    """Count to `STEPS`, starting from the number that an earlier attempt saved."""
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    files.write_json(directory / NODE, asdict(look_around(directory)))
    count = files.read_json(directory / COUNT) or {"step": 0, "attempts": []}
    interrupted = bool(count["attempts"])
    count["attempts"].append({"job": os.environ[OWNER], "from": count["step"]})
    while count["step"] < STEPS:
        count["step"] += 1
        row = {"done": count["step"], "total": STEPS, "text": "", "time": time.time()}
        files.write_json(directory / PROGRESS, {**row, "saved": count["step"]})
        if stops:
            files.write_json(directory / COUNT, count)
            return STOPPED
        if not interrupted:  # the doctor waits for this file, and for nothing after it
            time.sleep(PAUSE)
    files.write_json(directory / RESULT, count)
    return DONE


def look_around(directory: Path) -> Node:
    """Return the facts about this node that matter to a training."""
    return Node(
        host=platform.node(),
        python=platform.python_version(),
        torch=output(sys.executable, "-c", TORCH),
        gpus=output("nvidia-smi", "-L") if shutil.which("nvidia-smi") else "",
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        locked=_is_locked(directory / LOCK),
    )


def output(*command: str) -> str:
    """Return the output of a command, or the last line of its error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within 90 s"
    return (done.stdout if done.returncode == 0 else done.stderr).strip().rpartition("\n")[2]


def _is_locked(path: Path) -> bool:
    """Whether the lock that the doctor holds is visible on this node."""
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
