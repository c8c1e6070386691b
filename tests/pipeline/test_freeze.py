"""The code of waiting jobs is a copy that later edits do not reach."""

import shutil
import subprocess
import sys

from pipeline import freeze
from tests.launcher import PROJECT


def test_the_copy_runs_by_itself(tmp_path):
    kept = freeze.freeze(tmp_path)
    command = [sys.executable, "-c", "import pipeline.run, dyrep, slurm; print(pipeline.__file__)"]
    done = subprocess.run(command, cwd=kept, capture_output=True, text=True)
    assert done.stdout.strip() == str(kept / "pipeline" / "__init__.py"), done.stderr


def test_the_same_code_is_kept_once_and_edited_code_apart(tmp_path, monkeypatch):
    copy = tmp_path / "checkout"
    for package in freeze.PACKAGES:
        shutil.copytree(PROJECT / package, copy / package)
    monkeypatch.setattr(freeze, "PROJECT", copy)
    first = freeze.freeze(tmp_path)
    assert freeze.freeze(tmp_path) == first
    before = (first / "dyrep" / "fusion.py").read_text()
    (copy / "dyrep" / "fusion.py").write_text("edited")
    second = freeze.freeze(tmp_path)
    assert second != first
    assert (second / "dyrep" / "fusion.py").read_text() == "edited"
    assert (first / "dyrep" / "fusion.py").read_text() == before
