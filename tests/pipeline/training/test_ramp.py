"""Test `lr_finder`: it suggests the learning rate at which the loss falls fastest."""

import json
import math

import pytest

from pipeline.display.errors import BAD_INPUT, DONE, UserError
from pipeline.lr_finder import main
from pipeline.records import rundir
from pipeline.training import ramp
from tests.runs import make_run

RATES = ramp.rise(1e-5, 10.0, 121)


def falling(at):
    """Return a loss for each rate: it falls around the rate `at`, and rises above 100 times `at`."""
    return [
        2.3 - 1.5 / (1 + (at / rate) ** 2) + (20 * max(0.0, math.log10(rate / (100 * at))))
        for rate in RATES
    ]


@pytest.mark.parametrize("at", [1e-3, 1e-2])
def test_the_suggestion_is_where_the_loss_falls_fastest(at):
    found = ramp.judge(RATES, falling(at))
    assert at / 2 < found.suggestion < 8 * at  # the average over ten steps lags behind
    assert found.suggestion < found.lowest
    assert len(found.rates) == len(found.losses) == len(found.smoothed)


def test_a_fall_after_the_loss_has_diverged_does_not_count():
    losses = falling(1e-3)
    losses[100:] = [losses[99] - 0.5 * step for step in range(21)]
    assert ramp.judge(RATES, losses).suggestion < 1e-2


@pytest.mark.parametrize("losses", [[2.0 + 0.01 * n for n in range(121)], [math.nan], [2.0], []])
def test_a_loss_that_does_not_fall_has_no_suggestion(losses):
    with pytest.raises(UserError, match="falls at no learning rate"):
        ramp.judge(RATES, losses)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["r", "--low", "1", "--high", "0.1"], "--low 1 is not below --high 0.1"),
        (["r", "--steps", "5"], "use at least 20"),
        (["r", "--steps", "1000000000"], "use at most 100,000"),
        (["r", "--json", "circle", "--html", "circle"], "--json and --html both name circle"),
        (["r", "--json", "circle", "--html", "other"], "circle: Too many levels of symbolic links"),
        (["q"], "there is no run 'q'"),
        (["r"], "run r has no prepared images; `python -m pipeline.launch name=r stage=prep"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    make_run(tmp_path, "r", finished=())
    assert main([*arguments, "--root", str(tmp_path)]) == BAD_INPUT
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


@pytest.mark.long
def test_the_finder_changes_no_file_of_the_run(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = rundir.run_dir(finished.root, "small")
    before = {path: path.stat().st_mtime_ns for path in sorted(run.parent.parent.rglob("*"))}
    numbers = tmp_path / "a.json"
    arguments = ["small", "--root", str(finished.root), "--steps", "30", "--json", str(numbers)]
    assert main([*arguments, "--low", "1e-3", "--high", "1"]) == DONE
    assert "train.lr=" in capsys.readouterr().out
    found = json.loads(numbers.read_text())
    assert 1e-3 < found["suggestion"] < 1 and len(found["losses"]) <= 30
    assert "Loss by learning rate" in (tmp_path / "lr-small.html").read_text()
    assert {
        path: path.stat().st_mtime_ns for path in sorted(run.parent.parent.rglob("*"))
    } == before
