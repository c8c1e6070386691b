"""Test the report of runs that are unfinished, have hostile names, or have rows cut off."""

import html
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline.report
from pipeline import tracking
from pipeline.config import Disabled, Wandb
from pipeline.records import rundir
from pipeline.report import canvas, run_data, shipping, tables, write_report
from pipeline.tracking.rows import Steps
from tests.runs import make_run


@pytest.fixture
def run(tmp_path):
    """Return a run that was killed in its second epoch, and whose names contain markup."""
    (tmp_path / "train").mkdir()
    rundir.write_json(
        tmp_path / "run.json",
        {
            "name": "<script>alert(1)</script>", "group": None, "command": "python -m x '&<'",
            "choices": {"data": "digits", "model": "<i>", "method": "dyrep"},
            "source": {"revision": "abc", "dirty": False}, "versions": {"torch": "2"},
            "wandb": {"id": "abc123"}, "created": "2026-01-01T00:00:00",
        },
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text("name: </pre><b>\n")
    for step in (1, 2, 3):
        row = {"kind": "step", "step": step, "epoch": 1 + step // 3, "loss": 2.0 / step, "lr": 0.1}
        rundir.append_line(tmp_path / "train" / rundir.HISTORY, row)
    with (tmp_path / "train" / rundir.HISTORY).open("a") as file:
        file.write('{"kind": "step", "st')
    return tmp_path


def test_an_unfinished_run_has_a_report(run):
    story = run_data.read(run)
    assert story.missing == ["prep", "train", "fuse", "eval", "latency"]
    assert [row["step"] for row in story.steps] == [1, 2, 3]
    page = write_report(run).read_text()
    assert "not finished" in page and "git could not report" not in page


def test_a_loss_that_was_not_finite_is_a_gap_in_the_curve(run):
    (run / "train" / rundir.HISTORY).unlink()
    for step, (loss, val_loss) in enumerate(
        ((1.0, math.nan), (math.inf, 1.0), (2.0, 1.0)), start=1
    ):
        row = {"step": step, "epoch": step, "loss": loss, "lr": 0.1}
        rundir.append_line(run / "train" / rundir.HISTORY, {"kind": "step", **row})
        epoch = {"kind": "epoch", **row, "top1": 50.0, "val_loss": val_loss}
        rundir.append_line(run / "train" / rundir.HISTORY, epoch)
    assert "Training and validation loss by epoch" in write_report(run).read_text()


def test_the_report_says_if_uncommitted_changes_are_unknown(run):
    facts = rundir.read_json(run / "run.json")
    rundir.write_json(run / "run.json", facts | {"source": {"revision": None, "dirty": None}})
    assert "git could not report uncommitted changes" in write_report(run).read_text()


def test_names_are_text_not_markup(run):
    page = write_report(run).read_text()
    assert "<script>alert" not in page
    assert "</pre><b>" not in page


def test_a_failed_wandb_client_is_only_a_note(run, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(run))
    (run / "wandb.py").write_text("raise ImportError('broken')\n")
    tracking.mirror(run, Wandb(mode="offline", project="p", entity=None))
    assert "no result is affected" in capsys.readouterr().out
    assert "broken" in (run / "wandb.log").read_text()


def test_disabled_tracking_starts_nothing(run, monkeypatch):
    monkeypatch.setattr(tracking.subprocess, "run", None)
    tracking.mirror(run, Disabled(mode="disabled"))
    assert not (run / "wandb.log").exists()


def test_the_numbers_of_an_epoch_join_its_last_step(tmp_path):
    row = {"kind": "epoch", "step": 3, "epoch": 2, "top1": 50.0}
    history = tmp_path / "history.jsonl"
    for step in (1, 2, 3):
        rundir.append_line(history, {"kind": "step", "step": step, "epoch": 2, "loss": 1.0})
    steps = Steps(tmp_path)
    assert [row["step"] for row in steps.new(complete=False)] == [1, 2]
    rundir.append_line(history, row)
    assert list(steps.new(complete=False)) == []  # an epoch is complete once the next step follows
    (last,) = steps.new(complete=True)
    assert last == {"train/loss": 1.0, "epoch/top1": 50.0, "step": 3, "epoch": 2}
    assert list(steps.new(complete=True)) == []


def grown(branch, gain, price, place):
    return {"branch": branch, "gain": gain, "price": price, "place": place, "of": 9}


def test_the_report_shows_the_cost_of_layers_and_why_branches_were_chosen(run):
    event = {
        "action": "grow", "saliency": [["a", 1.0], ["b", 0.5]], "error_eval": 0.0, "error_train": 0.0,
        "parameters": 9, "flops": 9, "step_seconds_before": 1.0, "step_seconds_after": None,
    }  # fmt: skip
    for step, layer, branches, chosen in (
        (2, "a", ["kxk", "1x1", "1xk"], [grown("1x1", 4.0, 0.02, 1), grown("1xk", 1.0, 0.01, 3)]),
        (2, "b", ["kxk", "kx1"], [grown("kx1", 2.0, 0.125, 2)]),
        (4, "a", ["kxk", "1x1"], None),  # 1xk was cut
        (6, "a", ["kxk", "1x1", "kx1"], [grown("kx1", 0.5, 0.04, 1)]),
    ):
        row = {"step": step, "epoch": step // 2, "layer": layer, "branches": branches}
        rundir.append_line(run / "train" / rundir.GROWTH, {**event, **row, "chosen": chosen})
    for epoch, cost in ((1, 1.0), (2, 1.155), (3, 1.155)):
        row = {"kind": "epoch", "epoch": epoch, "step": 2 * epoch, "top1": 9.0, "loss": 1.0}
        more = {"val_loss": 1.0, "step_cost": cost}
        path = run / "train" / rundir.HISTORY
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: 2 + epoch]))
        rundir.append_line(path, row | more)
    story = run_data.read(run)
    assert [(c.layer, c.branch, c.gain, c.layer_price) for c in story.choices] == [
        ("a", "1x1", 1.0, pytest.approx(0.03)),
        ("a", "1xk", 0.25, pytest.approx(0.03)),
        ("b", "kx1", 0.5, 0.125),
        ("a", "kx1", 1.0, pytest.approx(0.06)),
    ]
    page = write_report(run).read_text()
    assert "Cost of a step" in page and "last 1.16" in page
    for word in ("0.1250", "2 of 9", "highest predicted gain per price"):
        assert word in page


def test_a_curve_shows_its_numbers_under_the_pointer():
    figure, axes = canvas.canvas("Accuracy")
    points = canvas.Curve("</svg>'\"", canvas.BLUE, [1, 2, 3], [10.0, 90.0, float("nan")])
    axes.plot(points.x, points.y)
    axes.set_ylim(-5, 130)
    canvas.within_percent(axes)
    assert axes.get_ylim() == (0, 100)
    page = canvas.svg(figure, "label", [points])
    (hover,) = re.findall('data-hover="([^"]*)"', page)
    (curve,) = json.loads(html.unescape(hover))["curves"]
    assert curve["name"] == points.name and curve["colour"] == "var(--blue)"
    (x, y, *first), second = curve["points"]  # NaN is not a point
    assert first == ["1", "10"] and second[2:] == ["2", "90"]
    _, _, width, height = map(float, re.search('viewBox="([^"]*)"', page)[1].split())
    assert 0 < x < second[0] < width and 0 < second[1] < y < height


def test_the_style_has_every_colour_of_a_figure_in_the_light_and_in_the_dark():
    style = (Path(pipeline.report.__file__).parent / "style.css").read_text()
    for name, colour in canvas.PALETTE.items():
        assert re.search(rf"--{name}: {colour};", style), name
        assert len(re.findall(rf"--{name}: ", style)) == 2, name


def test_a_long_curve_is_thinned_for_the_pointer():
    figure, _ = canvas.canvas("Loss")
    many = list(range(100_000))
    drawing = canvas.svg(figure, "label", [canvas.Curve("a", canvas.BLUE, many, many)])
    assert 30 * canvas.HOVERED < len(drawing) < 100 * canvas.HOVERED


def test_the_learning_rate_and_every_number_are_on_the_page(tmp_path):
    stages = ("prep", "train", "fuse", "eval")
    run = make_run(tmp_path, "r", finished=stages, metrics={"train/odd": 1234.56789})
    (run / "train" / rundir.GROWTH).unlink()
    facts = rundir.read_json(run / "run.json") | {"created": "now"}
    facts["source"]["dirty"] = False
    rundir.write_json(run / "run.json", facts)
    page = write_report(run).read_text()
    assert "Learning rate by epoch" in page
    assert (
        '<td class="name">train/odd</td><td class="n" data-value="1234.56789">1234.57</td>' in page
    )
    assert "http" not in page.replace("http://www.w3.org/", "")


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"train/epochs": 5}, "The network of the last of 5 epochs is shipped"),
        (
            {"train/epochs": 5, "train/shipped_epoch": 2},
            "The network of epoch 2 of 5 is shipped. The epoch was chosen for its top-1",
        ),
    ],
)
def test_the_report_says_which_epoch_is_shipped(tmp_path, metrics, expected):
    assert run_data.read(make_run(tmp_path, "a", metrics=metrics)).shipped.startswith(expected)


def test_every_page_extends_the_common_template_without_own_styles():
    folder = Path(pipeline.report.__file__).parents[1]
    parts = {"base.html", "macros.html"}
    pages = [path for path in folder.rglob("*.html") if path.name not in parts]
    assert len(pages) >= 4
    for page in pages:
        text = page.read_text()
        assert text.startswith('{% extends "report/base.html" %}\n'), page
        assert "<style" not in text and "<script" not in text, page


def test_names_of_points_that_are_close_do_not_overlap():
    figure, axes = canvas.canvas("Accuracy", xlabel="ms")
    points = [(5, 99.0, "onnx"), (5.01, 99.0, "compiled"), (5.02, 99.0, "int8"), (9, 99.0, "x")]
    axes.set_xlim(0, 10)
    axes.set_ylim(90, 100)
    shipping._name_points(figure, axes, points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(points)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_names_of_points_at_the_edge_cross_no_axis():
    figure, axes = canvas.canvas("Accuracy", xlabel="ms")
    points = [(0.05, 99.0, "int8"), (0.1, 90.1, "onnx"), (10, 95.0, "compiled")]
    axes.set_xlim(0, 10)
    axes.set_ylim(90, 100)
    shipping._name_points(figure, axes, points)
    area = axes.get_window_extent()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == {"int8", "onnx", "compiled"}
    for box in boxes.values():
        assert area.x0 < box.x0 and box.x1 < area.x1 and area.y0 < box.y0


def test_the_saliency_table_has_the_grown_layer_and_the_best_of_the_others(run):
    def row(epoch, layer, **scores):
        return {"epoch": epoch, "layer": layer, "saliency": list(scores.items())}

    story = run_data.read(run)
    story.growth = [
        row(3, "a", a=2.0, b=1.0, c=0.5, d=0.1, e=0.2), row(6, "b", b=4.0, c=1.0), row(9, "c", c=0.0)
    ]  # fmt: skip
    found = tables.saliency(story)
    assert found.columns == ["grown", "other 1", "other 2", "other 3"]
    assert [(name, [cell.text for cell in cells]) for name, cells in found.rows] == [
        ("3", ["a 1.00", "b 0.50", "c 0.25", "e 0.10"]), ("6", ["b 1.00", "c 0.25"]), ("9", ["c 0.00"]),
    ]  # fmt: skip
    assert tables.saliency(replace(story, growth=[])) is None


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("2026-01-02T03:04:05+0000", "02 Jan 2026, 03:04 UTC"),
        ("2026-01-02T03:04:05", "02 Jan 2026, 03:04"),
        ("some day", "some day"),
    ],
)
def test_the_date_of_a_run_is_shown_for_people(run, written, shown):
    story = run_data.read(run)
    assert replace(story, run={"created": written}).created == shown
