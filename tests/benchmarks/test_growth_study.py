"""Test the growth study: order of runs, folder of results, a training of each kind, report."""

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.growth_study import __main__ as study
from benchmarks.growth_study import alignment, data, plan, prices, report, shelf, training
from benchmarks.growth_study.arms import ARMS, FIRST, prepare
from benchmarks.growth_study.networks import NETWORKS
from benchmarks.growth_study.plan import CHOOSING, JUDGING, RATES
from benchmarks.growth_study.prices import Price
from benchmarks.growth_study.shelf import Run, Shelf
from benchmarks.growth_study.training import Size, Training

SMALL = Size(train=40, test=20, watch=10, epochs=4, batch=4, points=4)  # 4 epochs of 10 steps


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the files of Debian's Fashion-MNIST package, with random images."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 64), ("t10k", 20)):
        for kind, sizes in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            head = struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes)
            pixels = draw.integers(0, 10, sizes, dtype=np.uint8).tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + pixels))
    return tmp_path


def tiny():
    layers, inputs = [], 1
    for stride in (4, 1, 1, 1):
        conv = nn.Conv2d(inputs, 4, 3, stride, 1, bias=False)
        layers, inputs = [*layers, conv, nn.BatchNorm2d(4), nn.ReLU()], 4
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@pytest.fixture
def small(monkeypatch):
    """Use networks of 4 convs, and price a step with branches at two plain steps."""
    for name in NETWORKS:
        monkeypatch.setitem(NETWORKS, name, tiny)

    def price(self, model, watching):
        return Price(2.0 if prices.blocks(model) else 1.0, 1.9, 2.1, plain_seconds=1000.0)

    monkeypatch.setattr(prices.Prices, "_measure", price)


def row(accuracy, **more):
    point = {"cost": 10.0, "steps": 10, "accuracy": accuracy}
    return {
        "accuracy": accuracy, "steps": 10, "cost": 10.0, "plain_steps": 10, "changing": 0.0, "parameters": 5,
        "price": {"ratio": 1.0}, "curve": [point], "seconds": 3.0, **more,
    }  # fmt: skip


def chosen(arm, accuracies, seeds=CHOOSING, network="deep"):
    """Return the rows of an arm for each rate and seed; `accuracies` maps rates to accuracies."""
    return {
        Run(network, arm, rate, seed): row(accuracy + seed / 10)
        for rate, accuracy in accuracies.items()
        for seed in seeds
    }


def test_the_first_runs_compare_four_arms_at_each_rate_seed_by_seed():
    first = list(plan.wanted({}))[: len(FIRST) * len(RATES)]
    assert first == [Run("deep", arm, rate, 0) for rate in RATES for arm in FIRST]


@pytest.mark.parametrize(
    ("accuracies", "tried", "best"),
    [
        ([80, 90, 85], RATES, 0.1),
        ([90, 80, 70], (0.025, *RATES), None),
        ([70, 80, 90], (*RATES, 0.4), None),
    ],
)
def test_the_best_rate_has_a_neighbour_on_each_side(accuracies, tried, best):
    rows = chosen("plain", dict(zip(RATES, accuracies, strict=True)))
    assert plan.rates(rows, "deep", "plain") == list(tried)
    assert plan.best_rate(rows, "deep", "plain") == best


def test_other_seeds_run_at_the_best_rate_alone():
    rows = chosen("plain", {0.05: 80, 0.1: 90, 0.2: 85})
    judging = [r for r in plan.wanted(rows) if r.arm == "plain" and r.seed in JUDGING]
    assert [r for r in judging if r.network == "deep"] == [
        Run("deep", "plain", 0.1, seed) for seed in JUDGING
    ]


def test_networks_and_arms_of_the_study_can_be_selected():
    rows = chosen("plain", {0.05: 80, 0.1: 90, 0.2: 85}, CHOOSING + JUDGING)
    asked = list(plan.wanted(rows, ["deep"], ["plain", "orepa"]))
    assert {(run.network, run.arm) for run in asked} == {("deep", "orepa")}
    assert list(plan.wanted(rows, ["deep"], ["plain"])) == []


def test_an_arm_that_begins_like_another_waits_for_it():
    asked = [run for run in plan.wanted({}) if run.arm == "ours_structure"]
    assert not asked
    rows = chosen("ours", {0.05: 80, 0.1: 90, 0.2: 85})
    ready = [run for run in plan.wanted(rows) if run.arm == "ours_structure"]
    assert {run.seed for run in ready} == set(CHOOSING)
    assert plan.model_run(rows, ready[0]) == Run("deep", "ours", 0.1, 0)


def test_missing_runs_are_counted_with_those_that_wait():
    whole = 2 * len(ARMS) * (len(RATES) * len(CHOOSING) + len(JUDGING))
    assert plan.missing({}) == whole
    assert plan.missing({Run("deep", "plain", 0.1, 0): row(80)}) == whole - 1


def test_rows_survive_a_line_that_was_cut_off_and_other_protocols_do_not_count(
    tmp_path, monkeypatch
):
    kept, one, two = Shelf(tmp_path), Run("deep", "plain", 0.1, 0), Run("deep", "plain", 0.1, 1)
    kept.add(one, row(80))
    with kept.runs.open("a") as stream:
        stream.write('{"run": {"network": "dee')
    assert list(kept.rows()) == [one]
    kept.add(two, row(81))
    assert list(kept.rows()) == [one, two]
    found = json.loads(kept.runs.read_text().splitlines()[0])
    assert {"date", "commit", "dirty", "machine", "threads", "torch"} <= found.keys()
    monkeypatch.setattr(shelf, "PROTOCOL", shelf.PROTOCOL + 1)
    assert not kept.rows()


def test_a_run_is_made_by_one_worker(tmp_path):
    kept, run = Shelf(tmp_path), Run("deep", "plain", 0.1, 0)
    with kept.claim(run) as mine, Shelf(tmp_path).claim(run) as theirs:
        assert mine and not theirs
    with kept.claim(run) as mine:
        assert mine
        kept.add(run, row(80))
    with kept.claim(run) as mine:
        assert not mine


@pytest.mark.long
@pytest.mark.parametrize(
    ("arm", "steps", "structure"),
    [("plain", 40, 0), ("plain_x2", 80, 0), ("linear", 20, 4), ("linear_steps", 40, 4)],
)
def test_a_training_ends_when_its_budget_is_spent(folder, small, arm, steps, structure):
    images = data.read(folder, SMALL.train, SMALL.test)
    done = Training(Run("deep", arm, 0.01, 0), images, SMALL, Shelf(folder / "results"))()
    assert done["steps"] == steps and len(done["structure"]["blocks"]) == structure
    assert done["cost"] == steps * (2 if structure else 1)
    assert len(done["curve"]) == SMALL.points and 0 <= done["accuracy"] <= 100


def test_the_learning_rate_ends_at_zero():
    assert training.schedule(1) == 0
    assert training.schedule(training.WARM_UP) == 1


@pytest.mark.long
def test_a_growing_network_makes_fewer_steps_and_its_structure_can_start_a_training(folder, small):
    images, kept = data.read(folder, SMALL.train, SMALL.test), Shelf(folder / "results")
    grow = Training(Run("resnet", "ours_random", 0.01, 0), images, SMALL, kept)()
    assert grow["changes"][0]["done"][0][0] == "grow" and len(grow["changes"]) == 3
    assert 20 < grow["steps"] < 40 and grow["cost"] == pytest.approx(40, abs=1.5)
    anew = Training(
        Run("resnet", "ours_structure", 0.01, 0), images, SMALL, kept, grow["structure"]
    )
    assert all(not block["fixed"] for block in training.dyrep.structure(anew.model)["blocks"])


@pytest.mark.long
def test_the_last_step_is_compared_with_the_next_gradient(folder, small):
    images, kept = data.read(folder, SMALL.train, SMALL.test), Shelf(folder / "results")
    epochs = alignment.watched(Run("resnet", "plain", 0.01, 0), images, SMALL, kept)
    assert len(epochs) == SMALL.epochs
    values = [value for layer in epochs[-1].values() for value in layer.values()]
    assert len(values) >= 20 and all(-1 <= value <= 1 for value in values)


@pytest.mark.long
def test_arms_of_a_seed_begin_with_the_same_kernels_and_see_the_same_images(folder, small):
    images, kept = data.read(folder, SMALL.train, SMALL.test), Shelf(folder / "results")
    plain, linear = (
        Training(Run("deep", arm, 0.01, 3), images, SMALL, kept) for arm in ("plain", "linear")
    )
    kernel = linear.model.get_submodule("3").kernel
    assert torch.equal(plain.model.get_parameter("3.weight"), kernel)
    drawn = [next(training.batches(images, 8, t.order))[0] for t in (plain, linear)]
    assert torch.equal(data.augment(drawn[0], plain.order), data.augment(drawn[1], linear.order))


@pytest.mark.long
def test_a_worker_starts_no_run_that_would_end_too_late(folder, small, monkeypatch, capsys):
    monkeypatch.setattr(study.time, "monotonic", iter([0.0, *[1e9] * 999]).__next__)
    kept = Shelf(folder / "results")
    assert study.work(kept, folder, 1000.0, SMALL) == 0
    assert list(kept.rows()) == [Run("deep", "plain", RATES[0], 0)]
    assert "rate 0.05 seed 0" in capsys.readouterr().out


def test_missing_images_are_refused_with_the_package_to_install(tmp_path, capsys):
    assert study.main(["--data", str(tmp_path), "--results", str(tmp_path / "r")]) == 2
    assert "apt install dataset-fashion-mnist" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_report_tests_against_plain_and_says_what_is_missing(tmp_path, capsys):
    kept = Shelf(tmp_path)
    there = chosen("plain", {0.05: 80, 0.1: 82, 0.2: 79}) | chosen(
        "dbb", {0.05: 70, 0.1: 72, 0.2: 71}
    )
    for run, result in there.items():
        kept.add(run, result)
    kept.add(Run("deep", "linear", 0.1, 0), row(81))
    assert study.main(["--report", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "82.10 ± 0.25" in out and "-10.00" in out and "81.00 (1)" in out and "0.1 ?" in out
    assert f"19 runs are made, {plan.missing(kept.rows())} are missing" in out
    assert (tmp_path / "accuracy.svg").exists()


def test_an_arm_that_is_worse_than_plain_is_found():
    rows = chosen("plain", {0.05: 80, 0.1: 82, 0.2: 79})
    accuracies = iter([72.0, 72.4, 72.1])
    rows |= {run: row(a) for run, a in zip(chosen("dbb", {0.1: 0}), accuracies, strict=True)}
    rows |= chosen("dbb", {0.05: 60, 0.2: 60})
    by_arm = {judged.arm: judged for judged in report.judge(rows, "deep", CHOOSING)}
    assert by_arm["dbb"].versus.verdict == "worse" and by_arm["plain"].versus is None


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_a_price_is_measured_once_and_beside_the_plain_network(tmp_path, name):
    kept = Shelf(tmp_path)
    model = NETWORKS[name]()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) == {"deep": 19, "resnet": 13}[name]
    measured = prices.Prices(kept, name, batch=2, pairs=2)
    assert measured.of(model, ARMS["plain"], watched=False).ratio == 1
    prepare(model, ARMS["linear"], 0, None)
    price = measured.of(model, ARMS["linear"], watched=False)
    assert price.low <= price.ratio <= price.high
    assert measured.of(model, ARMS["linear"], watched=False) == price
    assert len(kept.prices.read_text().splitlines()) == 2
