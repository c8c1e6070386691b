"""Test that `prep`, killed or stopped and started again, ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pipeline.data.prepare import build
from pipeline.data.sources.choose import source
from pipeline.display.errors import UserError
from tests.launcher import PROJECT, wait_for
from tests.pipeline.data.preparing import encoded, folder, picture, prepared

pytestmark = pytest.mark.long


def test_prep_killed_while_it_removes_copies_ends_with_the_same_bytes(tmp_path, monkeypatch):
    root = tmp_path / "images"
    folder(root / "train")
    folder(root / "val", images=3)
    (root / "val" / "dog" / "x.jpg").write_bytes(encoded(picture(77)))
    settings = {"val_fraction": None, "shard_images": 2}
    whole = prepared(tmp_path, root, "whole", **settings).run()
    killed, real, dropped = prepared(tmp_path, root, "killed", **settings), build.drop, []

    def dies(*arguments):
        if dropped:
            raise KeyboardInterrupt
        dropped.append(real(*arguments))
        return dropped[0]

    monkeypatch.setattr(build, "drop", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    monkeypatch.undo()
    assert killed.run().files() == whole.files()
    assert killed.metrics == whole.metrics and len(killed.quarantine()) == 6


SLOW = """
import sys
from pathlib import Path
from pipeline.data.prepare import examine as check
from tests.pipeline.data.preparing import Prepared
examine = check.examine
def slowly(*arguments):
    import time
    time.sleep(0.02)
    return examine(*arguments)
from pipeline.data.prepare import build
build.examine = slowly
Prepared(Path(sys.argv[1]), shard_images=3, name="imagefolder", root=sys.argv[2]).run()
"""


def test_prep_killed_repeatedly_ends_with_the_same_bytes(tmp_path, images):
    whole = prepared(tmp_path, images, "whole", shard_images=3).run()
    root, kills = tmp_path / "killed", 0
    chance = random.Random(3)
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", SLOW, root, images], cwd=PROJECT)
        building = root / "data" / ".abc.building"
        until = time.monotonic() + 30
        before = len(list(building.glob("*.json"))) if building.exists() else 0
        while process.poll() is None and time.monotonic() < until:
            if len(list(building.glob("*.json"))) > before:
                time.sleep(chance.random() * 0.06)
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
        if (root / "data" / "abc").exists():
            break
    assert kills >= 3
    killed = prepared(tmp_path, images, "killed", shard_images=3)
    killed.run()
    assert killed.files() == whole.files()


def test_finished_shards_are_not_written_again(tmp_path, images, monkeypatch):
    made = prepared(tmp_path, images, shard_images=3)
    real, written = build.carry_out, []

    def stops(task):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task.path.name)
        return real(task)

    monkeypatch.setattr(build, "carry_out", stops)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    monkeypatch.setattr(
        build, "carry_out", lambda task: written.append(task.path.name) or real(task)
    )
    made.run()
    assert len(written) == len(set(written)) == len(list(made.folder.glob("*.tar")))


def test_unfinished_data_of_another_listing_is_not_used(tmp_path, images, monkeypatch):
    made = prepared(tmp_path, images, shard_images=3)
    monkeypatch.setattr("pipeline.stages.prep._refuse_bad", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.run()
    monkeypatch.undo()
    (images / "cat" / "new.jpg").write_bytes(encoded(picture(123)))
    made.run()
    fresh = prepared(tmp_path, images, "fresh", shard_images=3).run()
    assert made.files() == fresh.files()


def test_a_process_that_is_killed_is_named(tmp_path, images, monkeypatch):
    monkeypatch.setattr(build, "ALONE", 0)
    config = prepared(tmp_path, images).context.config
    work = build.tasks(source(config.data).listing(), config.data, config.prep, tmp_path)
    monkeypatch.setattr(build, "carry_out", _die)
    with pytest.raises(UserError, match="a process of prep was killed"):
        build.build(work, 2, lambda done: None)


def _die(task):
    os.kill(os.getpid(), signal.SIGKILL)


HANGS = """
import sys, time
from pathlib import Path
from pipeline.contract import interrupt
from pipeline.data.prepare import build
from pipeline.data.sources import folders
from tests.pipeline.data.preparing import Prepared
if __name__ == "__main__" or sys.argv[3] == "processes":
    def hangs(path):
        Path(sys.argv[1], "reading").touch()
        time.sleep(600)
    folders.read = hangs
if __name__ == "__main__":
    interrupt.install()
    build.ALONE = 0 if sys.argv[3] == "processes" else 4000
    made = Prepared(Path(sys.argv[1]), shard_images=3, name="imagefolder", root=sys.argv[2])
    made.context.stopping = interrupt.requested
    made.run()
"""


@pytest.mark.parametrize("where", ["here", "processes"])
def test_a_read_that_hangs_does_not_delay_a_stop(tmp_path, images, where):
    script, root = tmp_path / "script.py", tmp_path / "o"
    script.write_text(HANGS)
    process = subprocess.Popen(
        [sys.executable, script, root, images, where],
        cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for((root / "reading").exists, process)
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode and "Interrupted" in errors
