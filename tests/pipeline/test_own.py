"""The examples of a network, images and settings of one's own, as somebody would use them."""

import json
import shutil
import subprocess
import sys

import pytest

from pipeline.records import rundir
from tests.launcher import PROJECT, Launcher

TINY = (
    "data.args.images=60", "train.epochs=2", "train.batch_size=16", "train.deterministic=true",
    "method.adjust_interval=1", "fuse.exports=[]", "tracking=disabled",
)  # fmt: skip


@pytest.mark.long
def test_a_run_goes_on_from_anywhere_with_the_code_it_was_started_with(tmp_path, monkeypatch):
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    shutil.copytree(PROJECT / "examples" / "own", own)
    elsewhere.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    command = Launcher(tmp_path / "outputs").command

    def launch(folder, *words):
        return subprocess.run(
            command("name=shapes", *words), cwd=folder, capture_output=True, text=True, timeout=300
        )

    done = launch(own, "--config-dir", "conf", "experiment=shapes", "stage.run=[prep,train]", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "for 3 classes, 5 convolutions can grow" in done.stdout
    (own / "network.py").write_text("raise SystemExit('edited')")
    done = launch(own, "stage.run=[fuse]", "dry_run=true")
    assert "the code of network:small_resnet has changed since run shapes began" in done.stdout
    done = launch(elsewhere, "stage.run=[fuse]")
    assert done.returncode == 0, done.stdout + done.stderr
    run = rundir.run_dir(tmp_path / "outputs", "shapes")
    origin = json.loads((run / "run.json").read_text())["custom"]["model"]
    assert origin["file"] == str(own / "network.py")
    assert rundir.read_json(run / "train" / "result.json")["metrics"]["grown"] > 0
    kept = {path.parent.name: path.name for path in (tmp_path / "outputs/code").glob("*/*.py")}
    assert kept[origin["code"]] == "network.py"
    assert sorted(kept.values()) == ["images.py", "network.py"]


def test_the_drawings_are_the_same_by_number_and_in_turn(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "examples" / "own")
    from images import CLASSES, Shapes, shapes

    numbered, in_turn = Shapes(9), list(shapes(9))
    assert [numbered[n][0].tobytes() for n in range(9)] == [one.tobytes() for one, _ in in_turn]
    assert [CLASSES[label] for label in numbered.targets] == [name for _, name in in_turn]
    del sys.modules["images"]
