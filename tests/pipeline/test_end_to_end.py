"""The whole pipeline on real digits: real torchrun with two processes, real DALI, real wandb."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("nvidia.dali")

import torch
from safetensors.torch import load_file

from pipeline import attempt, models, rundir
from pipeline.config.model import Vgg
from tests.launcher import PROJECT, SMALL, Launcher


@pytest.fixture(scope="module")
def run(finished):
    return finished.root / "runs" / "small"


def metrics(run, stage):
    return rundir.read_json(run / stage / rundir.RESULT)["metrics"]


def test_every_stage_ends_with_its_promised_numbers(run):
    prep = {
        "images": 1797, "train_images": 1437, "val_images": 360, "classes": 10, "quarantined": 0,
        "copies": 0,
    }  # fmt: skip
    assert prep.items() <= metrics(run, "prep").items()
    train = metrics(run, "train")
    assert set(train) == {"top1", "top5", "loss", "epochs", "steps", "grown", "cut"}
    assert (train["epochs"], train["grown"]) == (4, 1)
    fuse = metrics(run, "fuse")
    assert fuse["max_rel_error"] < 1e-9
    assert fuse["parameters"] < fuse["parameters_unfused"]
    assert fuse["flips"] == fuse["float32/flips"] == fuse["exports_missing"] == 0
    names = {"p50_ms", "p90_ms", "p95_ms", "p99_ms", "images_per_s"}
    variants = ("fused", "unfused", "plain", "plain_folded", "onnx", "int8")
    wanted = {f"{v}/b{b}/{n}" for v in variants for b in (1, 8) for n in names}
    wanted |= {f"{v}/agreement" for v in ("unfused", "onnx", "int8")}
    latency = metrics(run, "latency")
    assert set(latency) == wanted | {"noisy", "probe_ms", "fused/open_p50_ms", "fused/open_p99_ms"}
    assert latency["fused/b1/p50_ms"] <= latency["fused/b1/p90_ms"] <= latency["fused/b1/p99_ms"]


def test_two_processes_count_each_image_once_and_both_networks_agree(run):
    evaluated = metrics(run, "eval")
    assert evaluated["images"] == 360
    assert evaluated["agreement"] == 100
    assert evaluated["fused/top1"] == evaluated["unfused/top1"] > 90
    predictions = load_file(run / "eval" / "predictions.safetensors")
    numbers = predictions["number"].flatten()
    assert len(numbers) == len(numbers.unique()) == 360
    right = (predictions["fused"][:, 0] == predictions["label"][:, 0]).double().mean().item()
    assert 100 * right == pytest.approx(evaluated["fused/top1"])
    assert metrics(run, "train")["top1"] == pytest.approx(evaluated["unfused/top1"])


def test_the_fused_file_loads_strictly_into_the_plain_network(run):
    network = Vgg(name="v", family="vgg", widths=[[32, 32], [64, 64], [128, 128]])
    plain = models.build(network, 10)
    plain.load_state_dict(load_file(run / "fuse" / "model.safetensors"), strict=True)


def test_history_holds_each_step_and_epoch_once(run):
    rows = list(rundir.read_lines(run / "train" / rundir.HISTORY))
    steps = [row["step"] for row in rows if row["kind"] == "step"]
    epochs = [row["epoch"] for row in rows if row["kind"] == "epoch"]
    assert steps == list(range(1, metrics(run, "train")["steps"] + 1))
    assert epochs == [1, 2, 3, 4]


def test_growth_tells_what_it_did_and_what_it_cost(run):
    (row,) = rundir.read_lines(run / "train" / rundir.GROWTH)
    assert (row["epoch"], row["action"]) == (2, "grow")
    assert row["saliency"][0][0] == row["layer"]
    assert row["error_eval"] < 1e-4
    assert row["step_seconds_after"] > 0
    assert {"branches", "error_train", "parameters", "flops", "step_seconds_before"} <= set(row)


def test_results_name_their_outputs_with_size_and_hash(run):
    for stage in ("prep", "train", "fuse", "eval", "latency"):
        result = rundir.read_json(run / stage / rundir.RESULT)
        assert result["attempts"] == 1
        assert "device" in result["environment"]
        for output in result["outputs"].values():
            path = run / stage / output["path"]
            assert path.stat().st_size == output["bytes"]
            assert rundir.sha256(path) == output["sha256"]


def test_one_offline_run_waits_for_wandb_sync(run):
    (folder,) = (run / "wandb").glob("offline-run-*")
    (record,) = folder.glob("*.wandb")
    content = record.read_bytes()
    for word in (b"fused/top1", b"adjust_interval", b"epoch/top1", b"growth"):
        assert word in content


def test_the_report_stands_alone(run):
    page = (run / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert page.count("<svg") == 9
    for word in ("fused, int8, ONNX Runtime", "model.onnx", "expected calibration error"):
        assert word in page
    assert "python -m pipeline.launch" in page


def test_launching_again_finds_everything_done(finished):
    start = time.monotonic()
    done = finished("name=small")
    assert done.returncode == 0
    assert done.stdout.count("finished before") == 5
    assert time.monotonic() - start < 20
    assert "report.html" in done.stdout.splitlines()[-1]


def test_a_changed_setting_under_a_known_name_is_refused(finished):
    done = finished("name=small", "train.epochs=9")
    assert done.returncode == 2
    assert "train.epochs is 4, asked for 9" in done.stderr
    assert "name=" in done.stderr


def test_a_name_under_which_nothing_is_trained_can_be_freed(launch):
    assert launch("name=x", "stage=prep", "tracking=disabled").returncode == 0
    done = launch("name=x", "train.epochs=9")
    assert done.returncode == 2
    assert f"`rm -r {launch.root / 'runs' / 'x'}` frees it" in done.stderr


def test_another_question_shares_what_it_can(finished):
    done = finished("name=other", *SMALL, "eval.batch_size=32", "stage=eval", "tracking=disabled")
    assert done.returncode == 0, done.stderr
    shared, own = finished.root / "runs" / "other", finished.root / "runs" / "small"
    assert (shared / "train").resolve() == (own / "train").resolve()
    assert (shared / "eval").resolve() != (own / "eval").resolve()
    assert metrics(shared, "eval") == pytest.approx(metrics(own, "eval"))  # one process as two
    assert not (shared / "wandb").exists()


@pytest.fixture
def copied(finished, tmp_path):
    """Return a launcher on a copy of the finished run, free to damage."""
    shutil.copytree(finished.root, tmp_path / "outputs", symlinks=True)
    return Launcher(tmp_path / "outputs")


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


def test_a_failing_stage_shows_its_log_and_where_it_is(copied):
    unfused = next((copied.root / "stages").glob("train-*")) / "model.safetensors"
    unfused.write_bytes(b"not a network")
    result = unfused.parent / rundir.RESULT
    content = rundir.read_json(result)
    entry = content["outputs"]["model.safetensors"]
    entry |= {"bytes": unfused.stat().st_size, "sha256": rundir.sha256(unfused)}
    rundir.write_json(result, content)
    shutil.rmtree(next((copied.root / "stages").glob("fuse-*")))
    done = copied("name=small", "stage=fuse", "tracking=disabled")
    assert done.returncode == 1
    assert "  | " in done.stderr
    log = done.stderr.splitlines()[-1].rpartition("its log: ")[2]
    assert "SafetensorError" in Path(log).read_text()


def test_a_tolerance_that_is_not_met_fails_and_names_the_layer(copied):
    done = copied("name=strict", *SMALL, "fuse.tolerance=1e-19", "stage=fuse", "tracking=disabled")
    assert done.returncode == 1
    assert "FusionError: features." in done.stderr.splitlines()[-1]
    folder = copied.root / "runs" / "strict" / "fuse"
    assert not list(folder.glob("model.*"))
    assert rundir.read_json(folder / "fusion.json")["inputs"]["real"]["worst"]  # to see which


TINY = ("stage.run=[prep,train]", "tracking=disabled", *SMALL, "train.epochs=6")


def start(launcher, *arguments):
    return subprocess.Popen(
        launcher.command(*arguments), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


def rows(run):
    return list(rundir.read_lines(run / "train" / rundir.HISTORY))


def weights(run):
    return load_file(run / "train" / "model.safetensors")


def test_interrupted_in_every_way_it_ends_with_the_same_network(copied):
    """Ctrl-C, TERM to a worker, kill -9 of everything; then compared with an undisturbed run."""
    name = "name=stopped"
    run = copied.root / "runs" / "stopped"
    deterministic = "train.deterministic=true"

    process = start(copied, name, *TINY, deterministic)
    wait_for(lambda: len(rows(run)) > 10, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "to continue: python -m pipeline.launch name=stopped" in said.splitlines()[-1]
    events = list(rundir.read_lines(run / "train" / "events.jsonl"))
    saved = [event["step"] for event in events if event["event"] == "saved"]
    assert saved[-1] == max(row["step"] for row in rows(run))  # nothing to repeat

    process = start(copied, name, "stage.run=[prep,train]")
    known = len(rows(run))
    wait_for(lambda: len(rows(run)) > known + 30, process)
    refused = copied(name, "stage.run=[prep,train]")
    assert refused.returncode == 2
    assert "is already running" in refused.stderr
    group = os.getpgid(attempt.last(run / "train")["pid"])
    os.killpg(group, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "its log:" in said.splitlines()[-1]

    done = copied(name, "stage.run=[prep,train]")
    assert done.returncode == 0, done.stderr

    undisturbed = copied("name=undisturbed", *TINY, deterministic, "seed=0")
    assert undisturbed.returncode == 0
    other = copied.root / "runs" / "undisturbed"
    assert (other / "train").resolve() == (run / "train").resolve()  # the same question
    disturbed, history = weights(run), rows(run)
    shutil.rmtree((run / "train").resolve())
    again = copied(name, "stage.run=[prep,train]")
    assert again.returncode == 0
    plain = weights(run)
    assert all(torch.equal(disturbed[key], plain[key]) for key in plain)
    exact = ("kind", "step", "epoch", "loss", "lr", "top1", "val_loss")
    assert [[r.get(k) for k in exact] for r in history] == [
        [r.get(k) for k in exact] for r in rows(run)
    ]


def test_a_damaged_checkpoint_is_passed_over(copied):
    run = copied.root / "runs" / "x"
    process = start(copied, "name=x", *TINY)
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


def test_a_sweep_makes_one_run_per_combination(finished):
    sweep = (
        "method=plain,dbb",
        "group=first",
        "train.epochs=1",
        "train.warmup_epochs=0",
        "fuse.exports=[]",
    )
    done = finished("-m", *sweep, "stage.run=[prep,train,fuse]", "tracking=disabled", timeout=600)
    assert done.returncode == 0, done.stderr
    found = {}
    for method in ("plain", "dbb"):
        run = (
            finished.root
            / "runs"
            / f"digits-vgg_small-{method}-s0-epochs_1-warmup_epochs_0-exports"
        )
        assert json.loads((run / "run.json").read_text())["group"] == "first"
        found[method] = metrics(run, "fuse")
        assert metrics(run, "train")["grown"] == 0
    assert found["dbb"]["parameters_unfused"] > 2 * found["plain"]["parameters_unfused"]
    assert found["dbb"]["parameters"] == found["plain"]["parameters"]


@pytest.fixture
def small_disk(tmp_path):
    """Return a launcher whose root is a disk of 64 MB, or skip where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    yield Launcher(disk / "outputs")
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(small_disk, *arguments, once):
    """Launch and fill the disk under it, which it says; return what is in the way."""
    ballast = small_disk.root.parent / "ballast"
    process = start(small_disk, *arguments)
    wait_for(once, process)
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while shutil.disk_usage(ballast.parent).free > 2**20:  # the run writes meanwhile
            file.write(bytes(2**20))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in said
    last = said.splitlines()[-1]
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


def test_a_full_disk_leaves_no_half_shard_and_prep_goes_on(small_disk, tmp_path):
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


def test_a_disk_that_became_read_only_is_named(small_disk):
    process = start(small_disk, "name=x", *TINY)
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


@pytest.mark.parametrize(
    "file", ["train/result.json", "run.json", "config.yaml", "train/stage.yaml"]
)
def test_a_damaged_file_is_named(copied, file):
    (copied.root / "runs" / "small" / file).write_text("{ half")
    done = copied("name=small")
    if file == "train/stage.yaml":  # nobody needs it any more
        assert done.returncode == 0
    else:
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"{Path(file).name} is damaged" in done.stderr
