"""Test a sweep of W&B: the real agent starts launches, whose runs belong to the sweep."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.planning.conf import CONF
from tests.launcher import PROJECT

pytest.importorskip("wandb")
pytest.importorskip("nvidia.dali")

WANDB = str(Path(sys.executable).with_name("wandb"))


def test_an_agent_starts_launches_whose_runs_are_its_trials(recorder, tmp_path):
    asked = yaml.safe_load((CONF / "sweeps" / "methods.yaml").read_text())
    local = [word for word in asked["command"] if word != "cluster=slurm"]
    local[1] = sys.executable
    local += [
        "cluster=local",
        f"root={tmp_path}",
        "train.epochs=2",
        "stage.run=[prep,train]",
        "method.adjust_interval=1",  # method=plain, which the trial has, lacks this setting
    ]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(asked | {"command": local}))
    recorder.trials = [("trial1", {"method": "plain", "seed": 3})]
    environment = recorder.environment(WANDB_DIR=str(tmp_path))
    for words in (["sweep", file], ["agent", "recorder/dyrep/sweep1"]):
        done = subprocess.run(
            [WANDB, *words], cwd=PROJECT, env=environment, capture_output=True, text=True,
            timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert not recorder.unknown
    (arrived,) = recorder.runs.values()
    assert (arrived.name, arrived.sweep, arrived.group) == ("trial1", "sweep1", "methods")
    assert arrived.state == "finished", done.stderr
    assert arrived.steps == list(range(1, 2 * 22 + 1))
    assert arrived.config["seed"]["value"] == 3
    assert arrived.config["method"]["value"] == "plain"  # W&B distinguishes trials by this value
