"""Compare growing trainings that are killed with `kill -9` with undisturbed ones, bit by bit.

The trainings run through the real launcher. In each precision, a training with
`train.deterministic=true` runs to its end. Then a training of the same question is started, and all
of its processes are killed in the middle of an epoch, several times, each time later. `differences`
counts the differences in weights, history and growth; it must be 0. The precisions run at the same
time, because nothing is timed here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from benchmarks import PROJECT, chaos, killing
from benchmarks.gpu_campaign.launching import launched
from benchmarks.gpu_campaign.measure import gist
from benchmarks.gpu_campaign.report import Report, Request
from pipeline.records import rundir

SETTINGS = ["cluster.processes_per_node=1", "data.loader=memory", "train.epochs=8",
            "method.adjust_interval=2", "method.last_adjust_epoch=6"]  # fmt: skip
SMALL = ["train.epochs=3", "method.adjust_interval=1", "method.last_adjust_epoch=2"]
LONGEST = 120  # longest time of an attempt, seconds


def run(request: Request, report: Report) -> None:
    precisions = ["float32"] if request.small else ["float32", "bfloat16", "float16"]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(precisions)) as pool:
        jobs = {
            precision: pool.submit(compared, Path(folder) / precision, precision, request.small)
            for precision in precisions
        }
        for precision, job in jobs.items():
            try:
                report.add(precision, job.result())
            except Exception as error:
                report.skip(precision, gist(error))


def compared(folder: Path, precision: str, small: bool) -> dict:
    """Return the result of a training, and the differences of a killed one."""
    settings = [*chaos.SETTINGS, *SETTINGS, *(SMALL if small else [])]
    settings.append(f"train.precision={precision}")
    alone = launched(folder / "alone", precision, *settings)
    killed = chaos.copy_question(alone, folder / "killed")
    steps = [killed_after(killed, number) for number in ([1] if small else [2, 4])]
    subprocess.run(attempt(killed), cwd=PROJECT, check=True, timeout=LONGEST)
    differences = chaos.differences(alone, killed)
    metrics = rundir.read_json(alone / rundir.RESULT)["metrics"]
    return {"grown": metrics["grown"], "cut": metrics["cut"], "top1": metrics["top1"],
            "killed_at_steps": steps, "differences": len(differences),
            "different": differences[:5]}  # fmt: skip


def attempt(stage: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline.run", str(stage)]


def killed_after(stage: Path, epochs: int) -> int:
    """Kill a training and all its processes some steps after so many epochs; return the step."""
    begun = time.time()
    process = subprocess.Popen(attempt(stage), cwd=PROJECT, start_new_session=True)
    try:
        while process.poll() is None and time.time() - begun < LONGEST:
            step, text = progress(stage, since=begun)
            if text.startswith("epoch") and int(text.split()[1].split("/")[0]) > epochs:
                return step
            time.sleep(0.002)
        raise RuntimeError(f"the training ended before epoch {epochs + 1}, or hangs")
    finally:
        for pid in [*killing.children(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def progress(stage: Path, since: float) -> tuple[int, str]:
    """Return the step and the text of this attempt's progress."""
    try:
        row = rundir.read_json(stage / rundir.PROGRESS)
    except (OSError, ValueError):
        return 0, ""
    return (row["done"], row["text"]) if row["time"] > since else (0, "")
