"""Test `examples/own`: a network, images and settings of the user, launched from any directory."""

import json
import shutil
import subprocess
import sys

import pytest

from pipeline.data.shards import Manifest
from pipeline.records import rundir
from tests.launcher import PROJECT, Launcher


@pytest.mark.long
def test_a_run_continues_from_any_directory_with_its_copy_of_the_code(tmp_path, monkeypatch):
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    shutil.copytree(PROJECT / "examples" / "own", own)
    elsewhere.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    command = Launcher(tmp_path / "outputs").command

    def launch(folder, *words):
        done = subprocess.run(
            command("name=shapes", *words), cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    launch(own, "--config-dir", "conf", "experiment=shapes", "stage=prep", "data.args.images=60")
    prep = rundir.run_dir(tmp_path / "outputs", "shapes") / "prep"
    first = prep.resolve()
    (own / "images.py").write_text("raise SystemExit('edited')")
    output = launch(elsewhere, "stage=prep", "again=[prep]")
    assert "the old result is kept" in output
    assert Manifest.load(prep / "data") == Manifest.load(
        first.with_name(f"{first.name}.again-1") / "data"
    )
    (own / "network.py").write_text("raise SystemExit('edited')")
    ramp = ("shapes", "--low", "1e-3", "--high", "1", "--steps", "20")
    finder = [sys.executable, "-m", "pipeline.lr_finder", *ramp, f"--root={tmp_path / 'outputs'}"]
    found = subprocess.run(finder, cwd=elsewhere, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "train.lr=" in found.stdout
    origin = json.loads((prep.parent / "run.json").read_text())["custom"]["data"]
    kept = {path.parent.name: path.name for path in (tmp_path / "outputs/code").glob("*/*.py")}
    assert origin["file"] == str(own / "images.py")
    assert kept[origin["code"]] == "images.py"
    assert sorted(kept.values()) == ["images.py", "network.py"]


def test_the_images_are_the_same_by_index_and_by_iteration(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "examples" / "own")
    from images import CLASSES, Shapes, shapes

    numbered, in_turn = Shapes(9), list(shapes(9))
    assert [numbered[n][0].tobytes() for n in range(9)] == [one.tobytes() for one, _ in in_turn]
    assert [CLASSES[label] for label in numbered.targets] == [name for _, name in in_turn]
    del sys.modules["images"]
