"""Test that interruptions, damaged files and full disks are reported, and lose no work."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("nvidia.dali")

import torch
from safetensors.torch import load_file

from pipeline.records import attempt, disk, rundir
from tests.launcher import PROJECT, SMALL, Launcher, wait_for

pytestmark = pytest.mark.long

TINY = ("stage.run=[prep,train]", "tracking=disabled", *SMALL, "train.epochs=6")


def rows(run):
    return list(rundir.read_lines(run / "train" / rundir.HISTORY))


def weights(run):
    return load_file(run / "train" / "model.safetensors")


def test_a_training_interrupted_and_killed_ends_with_the_same_network(copied):
    """Ctrl-C, then kill -9 of the stage: the training must equal the one that was not disturbed."""
    again = ("name=small", "stage.run=[prep,train]")
    run = copied.root / "runs" / "small"
    undisturbed, history = weights(run), rows(run)
    shutil.rmtree((run / "train").resolve())

    process = copied.start(*again)
    wait_for(lambda: len(rows(run)) > 10, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "to continue: python -m pipeline.launch name=small" in errors.splitlines()[-1]
    events = list(rundir.read_lines(run / "train" / "events.jsonl"))
    saved = [event["step"] for event in events if event["event"] == "saved"]
    assert saved[-1] == max(row["step"] for row in rows(run))  # no step has to be repeated

    process = copied.start(*again)
    known = len(rows(run))
    wait_for(lambda: len(rows(run)) > known, process)
    group = os.getpgid(attempt.last(run / "train").pid)
    os.killpg(group, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "its log:" in errors.splitlines()[-1]

    done = copied(*again)
    assert done.returncode == 0, done.stderr
    disturbed = weights(run)
    assert all(torch.equal(disturbed[key], undisturbed[key]) for key in undisturbed)
    exact = ("kind", "step", "epoch", "loss", "lr", "top1", "val_loss")
    assert [[r.get(k) for k in exact] for r in history] == [
        [r.get(k) for k in exact] for r in rows(run)
    ]


def test_a_damaged_checkpoint_is_skipped(copied):
    run = copied.root / "runs" / "x"
    process = copied.start("name=x", *TINY)
    wait_for(
        lambda: any(row["kind"] == "epoch" and row["epoch"] == 2 for row in rows(run)), process
    )
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    files = (run / "train" / "checkpoints").glob("step-*.safetensors")
    newest, older = sorted(files, reverse=True)[:2]
    newest.write_bytes(newest.read_bytes()[:-100])
    done = copied("name=x", "stage.run=[prep,train]")
    assert done.returncode == 0, done.stderr
    events = list(rundir.read_lines(run / "train" / "events.jsonl"))
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    assert resumed["step"] == int(older.stem.split("-")[1])
    log = rundir.log_file(run / "train", 2).read_text()
    assert f"checkpoint passed over: {newest.name}" in log
    steps = [row["step"] for row in rows(run) if row["kind"] == "step"]
    assert steps == list(range(1, 6 * 22 + 1))


@pytest.mark.parametrize("harm", ["truncated", "edited"])
def test_damaged_shards_are_named(copied, harm):
    shard = next((copied.root / "data").glob("*/train-00000.tar"))
    content = bytearray(shard.read_bytes())
    content[600] ^= 255
    shard.write_bytes(content[: len(content) // 2] if harm == "truncated" else content)
    done = copied("name=new", "seed=5")
    assert done.returncode == 2
    assert "train-00000.tar" in done.stderr
    assert "rm -r" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (copied.root / "runs" / "new").exists()


def test_a_failed_stage_shows_the_end_and_the_path_of_its_log(copied):
    unfused = next((copied.root / "stages").glob("train-*")) / "model.safetensors"
    unfused.write_bytes(b"not a network")
    result = unfused.parent / rundir.RESULT
    content = rundir.read_json(result)
    entry = content["outputs"]["model.safetensors"]
    entry |= {"bytes": unfused.stat().st_size, "sha256": disk.sha256(unfused)}
    rundir.write_json(result, content)
    shutil.rmtree(next((copied.root / "stages").glob("fuse-*")))
    done = copied("name=small", "stage=fuse", "tracking=disabled")
    assert done.returncode == 1
    assert "  | " in done.stderr
    log = done.stderr.splitlines()[-1].rpartition("its log: ")[2]
    assert "SafetensorError" in Path(log).read_text()


def test_a_tolerance_that_is_not_met_fails_and_names_the_layer(copied):
    done = copied(
        "name=strict", *SMALL, "fuse.tolerance=2.3e-16", "stage=fuse", "tracking=disabled"
    )
    assert done.returncode == 1
    assert "FusionError: features." in done.stderr.splitlines()[-1]
    folder = copied.root / "runs" / "strict" / "fuse"
    assert not list(folder.glob("model.*"))
    assert rundir.read_json(folder / "fusion.json")["inputs"]["real"][
        "worst"
    ]  # shows which layers differ


@pytest.mark.parametrize(
    "file", ["train/result.json", "run.json", "config.yaml", "train/stage.yaml"]
)
def test_a_damaged_file_is_named(copied, file):
    (copied.root / "runs" / "small" / file).write_text("{ half")
    done = copied("name=small")
    if file == "train/stage.yaml":  # a finished stage does not need this file
        assert done.returncode == 0
    else:
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"{Path(file).name} is damaged" in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """Return a launcher whose root is on a disk of 64 MB; skip the test if it cannot be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield Launcher(disk / "outputs")
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(small_disk, *arguments, once):
    """Launch, fill the disk once a condition holds, and check the error; return the large file."""
    ballast = small_disk.root.parent / "ballast"
    process = small_disk.start(*arguments)
    wait_for(once, process)
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while shutil.disk_usage(ballast.parent).free > 2**20:  # the run still writes
            file.write(bytes(2**20))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: ") and last.endswith(
        "No space left on device; make room and launch again"
    )
    return ballast


def test_a_full_disk_is_named_and_training_continues_once_there_is_room(small_disk):
    run = small_disk.root / "runs" / "x"
    ballast = fill(small_disk, "name=x", *TINY, once=lambda: len(rows(run)) > 5)
    ballast.unlink()
    done = small_disk("name=x", "stage.run=[prep,train]")
    assert done.returncode == 0, done.stderr
    steps = [row["step"] for row in rows(run) if row["kind"] == "step"]
    assert steps == list(range(1, 6 * 22 + 1))


def test_prep_continues_after_a_full_disk_with_the_same_shards(small_disk, tmp_path):
    what = ("name=x", "stage=prep", "data=synthetic", "data.images=1500", "data.height=128",
            "data.width=128", "prep.shard_images=64", "tracking=disabled")  # fmt: skip
    root = small_disk.root
    ballast = fill(small_disk, *what, once=lambda: list(root.glob("data/.*/train-*.json")))
    ballast.unlink()
    assert small_disk(*what).returncode == 0
    elsewhere = Launcher(tmp_path / "elsewhere")
    assert elsewhere(*what).returncode == 0
    made = [
        {path.name: path.read_bytes() for path in root.glob("data/*/*") if path.suffix != ".html"}
        for root in (root, elsewhere.root)
    ]
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []
    assert len(made[0]) > 20


def test_a_disk_remounted_read_only_is_named(small_disk):
    process = small_disk.start("name=x", *TINY)
    wait_for(lambda: len(rows(small_disk.root / "runs" / "x")) > 5, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    disk = small_disk.root.parent
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    stage = (small_disk.root / "runs" / "x" / "train").resolve()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.run", stage], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {stage}/.lock: Read-only file system; make it writable")
    assert done.stderr.count("\n") == 1
