"""Test `examples/afternoon.sh` at small size: from pictures in a table to a model file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.records import rundir
from tests.launcher import PROJECT

SMALL = (
    "train.epochs=3", "latency.repeats=10", "latency.batch_sizes=[1]", "latency.also=[]",
    "tracking=disabled",
)  # fmt: skip


@pytest.mark.slow
def test_the_afternoon_ends_with_a_file_that_classifies_a_picture(tmp_path):
    for needed in ("pyarrow", "onnxruntime"):
        pytest.importorskip(needed)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [PROJECT / "examples" / "afternoon.sh", tmp_path / "afternoon", *SMALL],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    runs = rundir.run_dir(tmp_path / "afternoon" / "outputs", "")
    assert {path.name for path in runs.iterdir()} == {"first", "plain", "dyrep", "grow", "shipped"}
    answer = json.loads((tmp_path / "afternoon" / "afternoon.json").read_text())
    best = answer["groups"][0]["runs"][0]
    assert (runs / "shipped" / "train").resolve() == (runs / best / "train").resolve()
    assert "picture.png" in done.stdout.splitlines()[-1]
    assert any(name in done.stdout.splitlines()[-1] for name in ("circle", "square", "triangle"))
