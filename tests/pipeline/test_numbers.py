"""Test NaN and infinity: written as null, refused as results, and reported as skipped steps."""

import json
import types

import pytest
import torch

from pipeline.contract.table import STAGES
from pipeline.display.errors import NoNumber, UserError
from pipeline.execution import work
from pipeline.planning import summary
from pipeline.records import rundir
from pipeline.training import nonfinite
from pipeline.training.history import History, Rows

NAN, INF = float("nan"), float("inf")


def strictly(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": 1.5, "b": [1, "NaN"]}, {"a": 1.5, "b": [1, "NaN"]}),
        ({"a": NAN, "b": {"c": [INF, -INF, (1.0, NAN)]}}, {"a": None, "b": {"c": [None, None, [1.0, None]]}}),
        ([NAN], [None]),
    ],
)  # fmt: skip
def test_nan_and_infinity_are_written_as_null(value, written, tmp_path):
    rundir.write_json(tmp_path / "a.json", value)
    assert strictly((tmp_path / "a.json").read_text()) == written
    rundir.append_line(tmp_path / "a.jsonl", {"row": value})
    rows = Rows(tmp_path / "rows.jsonl", 0, True)
    rows.write([{"row": value}])
    for name in ("a.jsonl", "rows.jsonl"):
        assert strictly((tmp_path / name).read_text()) == {"row": written}


def test_files_of_older_versions_that_hold_nan_are_read(tmp_path):
    (tmp_path / "result.json").write_text('{"seconds": 1.0, "metrics": {"loss": NaN, "top1": 5.0}}')
    assert rundir.read_json(tmp_path / "result.json")["metrics"]["top1"] == 5.0
    (tmp_path / "history.jsonl").write_text(
        '{"kind": "step", "step": 1, "epoch": 1, "loss": NaN}\n'
    )
    assert len(list(rundir.read_lines(tmp_path / "history.jsonl"))) == 1


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e308", "-1e308"])
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("progress.json", '{"done": 1, "total": 2, "text": "", "time": 1.0, "eta": %s}'),
        ("progress.json", '{"done": 1, "total": 2, "text": "", "time": %s}'),
        ("events.jsonl", '{"time": %s, "event": "started"}'),
        ("events.jsonl", '{"time": 1.0, "event": "began", "gpus": %s}'),
        ("result.json", '{"seconds": %s, "metrics": {}}'),
    ],
)
def test_an_impossible_time_or_duration_is_damage(tmp_path, file, content, number):
    (tmp_path / file).write_text(content % number + "\n")
    with pytest.raises(UserError, match=rf"{file} .*is damaged"):
        list(rundir.parse_lines(tmp_path / file))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_result_that_is_not_finite_fails_its_stage(value):
    work._check_numbers(STAGES["train"], {"loss": 0.5, "top1": 1})
    with pytest.raises(NoNumber, match=r"train ended .* loss is (nan|inf|-inf); lower train.lr"):
        work._check_numbers(STAGES["train"], {"loss": value, "top1": 1})


@pytest.mark.parametrize(
    ("skipped", "steps", "ends"),
    [(0, 5, ""), (1, 5, "1 of 5 steps skipped"), (2, 4, "2 of 4"), (3, 5, None), (5, 5, None), (1, 1, None)],
)  # fmt: skip
def test_an_epoch_with_mostly_skipped_steps_fails_the_training(skipped, steps, ends):
    if ends is None:
        with pytest.raises(nonfinite.Diverged, match=f"{skipped} of {steps} steps were skipped"):
            nonfinite.judge(skipped, 0, steps, 1)
    else:
        assert ends in "".join(nonfinite.judge(skipped, 0, steps, 1))


def history(folder, saved):
    world = types.SimpleNamespace(
        main=True, world_size=1, device=torch.device("cpu"), total=lambda losses: losses
    )
    recipe = types.SimpleNamespace(nonfinite="skip", batch_size=8)
    return History(folder / "history.jsonl", world, recipe, saved)


def test_skipped_steps_are_counted_across_a_restart(tmp_path):
    first = history(tmp_path, {})
    for step, loss in enumerate((1.0, NAN, 2.0), start=1):
        first.step(step, 1, torch.tensor(loss), 0.1)
    assert first.skipped_now() == (1, 3)
    second = history(tmp_path, strictly(json.dumps(first.state())))
    second.step(4, 1, torch.tensor(INF), 0.1)
    assert second.skipped_now() == (2, 4)
    second.epoch(4, 1, {"val_loss": NAN, "top1": 10.0}, 8, {})
    assert second.skipped_now() == (0, 0)
    assert second.state()["skipped"] == 2
    *steps, epoch = map(strictly, (tmp_path / "history.jsonl").read_text().splitlines())
    assert [row["loss"] for row in steps] == [1.0, None, 2.0, None]
    assert (epoch["skipped"], epoch["loss"], epoch["val_loss"]) == (2, 1.5, None)


def test_skipped_steps_are_shown():
    metrics = {"top1": 9.0, "epochs": 2, "grown": 0, "cut": 0}
    assert "skipped" not in summary.describe("train", metrics)
    assert "3 steps skipped" in summary.describe("train", metrics | {"skipped": 3})


def test_a_result_without_growth_counts_the_convolutions_that_could_not_grow(tmp_path):
    numbers = {
        "top1": 9.0,
        "epochs": 2,
        "grown": 0,
        "cut": 0,
        "plain_steps": 10,
        "adjusting_steps": 4,
    }
    (tmp_path / "result.json").write_text(json.dumps({"seconds": 1.0, "metrics": numbers}))
    assert summary.outcome("train", tmp_path).endswith("; adjusting took 40.0 % of the cost")
    (tmp_path / "structure.json").write_text(json.dumps({"left": {"a": "frozen", "b": "frozen"}}))
    assert summary.outcome("train", tmp_path).endswith("; 2 convolutions could not grow: frozen")
    numbers["grown"] = 1
    (tmp_path / "result.json").write_text(json.dumps({"seconds": 1.0, "metrics": numbers}))
    assert "could not grow" not in summary.outcome("train", tmp_path)
