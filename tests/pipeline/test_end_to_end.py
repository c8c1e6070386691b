"""Test the whole pipeline on real digits, with two processes, DALI and wandb."""

import json

import pytest

pytest.importorskip("nvidia.dali")

from safetensors.torch import load_file

from pipeline.config.model import Vgg
from pipeline.networks import architectures
from pipeline.records import disk, rundir
from tests.launcher import SMALL


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
    counted = {
        "epochs",
        "steps",
        "grown",
        "cut",
        "left",
        "plain_steps",
        "step_cost",
        "adjusting_steps",
    }
    assert set(train) == {"top1", "top5", "loss", "val_loss"} | counted
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
    plain = architectures.build(network, 10, channels=1)
    plain.load_state_dict(load_file(run / "fuse" / "model.safetensors"), strict=True)


def test_history_holds_each_step_and_epoch_once(run):
    rows = list(rundir.read_lines(run / "train" / rundir.HISTORY))
    steps = [row["step"] for row in rows if row["kind"] == "step"]
    epochs = [row["epoch"] for row in rows if row["kind"] == "epoch"]
    assert steps == list(range(1, metrics(run, "train")["steps"] + 1))
    assert epochs == [1, 2, 3, 4]


def test_growth_records_its_change_and_its_cost(run):
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
            assert disk.sha256(path) == output["sha256"]


def test_one_offline_run_waits_for_wandb_sync(run):
    (folder,) = (run / "wandb").glob("offline-run-*")
    (record,) = folder.glob("*.wandb")
    content = record.read_bytes()
    for word in (b"fused/top1", b"adjust_interval", b"epoch/top1", b"growth"):
        assert word in content


def test_the_report_loads_nothing(run):
    page = (run / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert page.count("<svg") == 9
    for word in ("fused, int8, ONNX Runtime", "model.onnx", "expected calibration error"):
        assert word in page
    assert "python -m pipeline.launch" in page


def test_launching_again_finds_everything_done(finished):
    done = finished("name=small")
    assert done.returncode == 0
    assert done.stdout.count("finished before") == 5
    assert "report.html" in done.stdout.splitlines()[-1]


def test_a_changed_setting_under_a_known_name_is_refused(finished):
    done = finished("name=small", "train.epochs=9")
    assert done.returncode == 2
    assert "train.epochs is 4, asked for 9" in done.stderr
    assert "name=" in done.stderr


def test_a_name_under_which_nothing_is_trained_can_be_freed(launch):
    assert launch("name=x", "stage=prep", "tracking=disabled").returncode == 0
    done = launch("name=x", "prep.shard_images=99")
    assert done.returncode == 2
    assert f"`rm -r {launch.root / 'runs' / 'x'}` frees it" in done.stderr


def test_a_run_with_other_settings_shares_the_stages_that_do_not_read_them(finished):
    done = finished("name=other", *SMALL, "eval.batch_size=32", "stage=eval", "tracking=disabled")
    assert done.returncode == 0, done.stderr
    shared, own = finished.root / "runs" / "other", finished.root / "runs" / "small"
    assert (shared / "train").resolve() == (own / "train").resolve()
    assert (shared / "eval").resolve() != (own / "eval").resolve()
    # one process gives the numbers of two
    assert metrics(shared, "eval") == pytest.approx(metrics(own, "eval"))
    assert not (shared / "wandb").exists()


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
