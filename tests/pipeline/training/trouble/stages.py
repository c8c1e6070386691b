"""Start a stage directory of a small training, change its settings and read its records."""

import os
import signal
import subprocess
import sys

import yaml

from benchmarks.killing import children
from pipeline.records import rundir
from tests.launcher import PROJECT, wait_for


def change(stage, name, section, **values):
    path = stage / name
    content = yaml.safe_load(path.read_text())
    (content["config"] if name == rundir.STAGE else content)[section].update(values)
    path.write_text(yaml.safe_dump(content))


def start(stage, environment=None):
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.run", str(stage)],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip


def to_end(stage):
    process = start(stage)
    output, _ = process.communicate(timeout=180)
    return process.returncode, output


def events(stage, name):
    return [row for row in rundir.read_lines(stage / rundir.EVENTS) if row["event"] == name]


def steps(stage):
    rows = rundir.read_lines(stage / rundir.HISTORY)
    return [row["step"] for row in rows if row["kind"] == "step"]


def below(pid):
    return [pid, *(deeper for child in children(pid) for deeper in below(child))]


def stop_after_first_epoch(stage):
    """Start a training, and stop it by SIGTERM in the middle of its second epoch."""
    # history rows are written with each checkpoint
    change(stage, rundir.WHERE, "checkpoint", interval="3 steps")
    process = start(stage)
    wait_for(lambda: len(steps(stage)) > 25, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert 22 < events(stage, "saved")[-1]["step"] < 44
