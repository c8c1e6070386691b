"""Test a launch with online tracking that is interrupted and launched again."""

import signal
import subprocess
import time

import pytest

from pipeline.records import rundir
from pipeline.tracking import rows
from tests.launcher import PROJECT, SMALL, Launcher

pytest.importorskip("wandb")
pytest.importorskip("nvidia.dali")

WATCHED = (
    "name=seen",
    "group=g",
    "tracking=online",
    *SMALL,
    "stage.run=[prep,train,fuse]",
    "fuse.exports=[]",
)


def test_an_interrupted_launch_is_one_run_with_one_curve(recorder, tmp_path):
    launch = Launcher(tmp_path / "outputs")
    run = launch.root / "runs" / "seen"
    process = subprocess.Popen(
        launch.command(*WATCHED), cwd=PROJECT, env=recorder.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not any(arrived.steps for arrived in list(recorder.runs.values())):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    assert not (run / "train" / "result.json").exists()  # rows arrive before the training ends
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    done = launch(*WATCHED, environment=recorder.environment())
    assert done.returncode == 0, done.stderr
    (arrived,) = recorder.runs.values()
    assert arrived.name == rundir.read_json(run / "run.json")["wandb"]["id"]
    assert arrived.steps == list(range(1, 4 * 22 + 1))
    assert arrived.state == "finished"
    assert rows.results(run).items() <= arrived.summary.items()
    assert {a["type"] for a in recorder.artifacts.values()} >= {"dataset", "model", "report"}
    assert not recorder.unknown
