"""Test the command `compare`: which runs it averages, and the same numbers in table, JSON and page."""

import functools
import html.parser
import itertools
import json
import re

import pytest
import yaml

from pipeline.compare import answer, collect, page, table
from pipeline.compare.__main__ import main
from pipeline.config import ADDED
from pipeline.display.errors import BAD_INPUT, DONE
from tests.runs import make_run


@pytest.fixture
def sweep(tmp_path):
    """Return a root with runs of two methods and three seeds; dyrep is better for each seed."""
    for seed, plain, dyrep in ((1, 90.0, 91.0), (2, 92.0, 93.5), (3, 91.0, 91.5)):
        make_run(tmp_path, f"plain-{seed}", "method=plain", seed=seed, top1=plain)
        make_run(tmp_path, f"dyrep-{seed}", "method=dyrep", seed=seed, top1=dyrep, seconds=7200)
    return tmp_path


@pytest.fixture
def compare(sweep, tmp_path, monkeypatch):
    """Return a function that runs the command on the sweep and returns its JSON."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        file = tmp_path / "answer.json"
        assert main(["--group", "g", "--root", str(sweep), "--json", str(file), *arguments]) == DONE
        return json.loads(file.read_text())

    return run


def refused(capsys, *arguments):
    assert main([*map(str, arguments)]) == BAD_INPUT
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


# -- which runs are averaged -----------------------------------------------------------------------


def test_seeds_are_averaged_the_best_first_and_tested_in_pairs(compare):
    result = compare()
    best, plain = result["groups"]
    assert [best["label"], plain["label"]] == ["method=dyrep", "method=plain"]
    assert (best["top1"]["n"], best["top1"]["mean"]) == (3, pytest.approx(92.0))
    assert result["baseline"] == "method=plain"
    assert best["versus"]["difference"] == pytest.approx(1.0)
    assert best["versus"]["n"] == 3
    assert best["layers"] == {"features.3": 3}
    assert best["val_loss"]["mean"] == pytest.approx(0.16) and "loss" not in best
    times = best["hours"]["mean"], plain["hours"]["mean"]
    assert (result["time_unit"], *times) == ("hours", 2.0, 1.0)
    assert best["latency_ms"] == {"1": 0.5, "64": 20.0}
    assert (
        "train.lr" not in result["differ"]
        and result["differ"]["method.name"]["method=plain"] == "plain"
    )


def test_of_equally_good_groups_the_cheapest_to_train_comes_first(tmp_path):
    for name, steps in (("dyrep", 300), ("plain", 100), ("grow", 200)):
        make_run(tmp_path, name, f"method={name}", metrics={"train/plain_steps": steps})
    result = answer.answer("t", collect.read(collect.select(tmp_path, [], "g")), [], force=False)
    assert [group.settings["method.name"] for group in result.groups] == ["plain", "grow", "dyrep"]


def test_gpu_hours_are_taken_from_what_the_supervisor_saw(tmp_path):
    runs = [make_run(tmp_path, "a", gpus=8, seconds=1800.0)]
    assert collect.read(runs)[0].gpu_hours == pytest.approx(4.0)


def test_unfinished_runs_are_listed_and_not_averaged(sweep, compare):
    make_run(sweep, "unfinished", "method=plain", seed=4, top1=1.0, finished=("prep", "train"))
    make_run(sweep, "cancelled", "method=plain", seed=5, top1=1.0, finished=())
    (sweep / "runs" / "cancelled" / "train" / "CANCELLED").touch()
    failed = make_run(sweep, "failed", "method=plain", seed=6, finished=("prep",))
    event = {"time": 1.0, "event": "failed", "attempt": 1, "message": "boom"}
    (failed / "train" / "events.jsonl").write_text(json.dumps(event) + "\n")
    make_run(
        sweep,
        "no-eval",
        "method=plain",
        seed=7,
        asked=("prep", "train"),
        finished=("prep", "train"),
    )
    damaged = make_run(sweep, "damaged", "method=plain", seed=8)
    (damaged / "eval" / "result.json").write_text("{")
    stale = make_run(sweep, "stale", "method=plain", seed=9)
    (stale / "train").unlink()
    (stale / "train").symlink_to((sweep / "runs" / "plain-1" / "train").readlink())
    make_run(sweep, "twice", "method=plain", seed=1, top1=1.0)
    result = compare()
    states = {row["run"]: row["state"] for row in result["left_out"]}
    assert states == {
        "unfinished": "not started", "cancelled": "cancelled", "failed": "failed", "stale": "mismatched",
        "no-eval": "not evaluated", "damaged": "damaged", "twice": "duplicate",
    }  # fmt: skip
    assert [group["top1"]["n"] for group in result["groups"]] == [3, 3]
    assert "boom" in next(row["why"] for row in result["left_out"] if row["run"] == "failed")


def test_a_comparison_without_finished_runs_is_no_error(tmp_path, capsys):
    make_run(tmp_path, "a", finished=())
    assert main(["a", "--root", str(tmp_path), "--html", str(tmp_path / "a.html")]) == DONE
    assert "not started" in capsys.readouterr().out


def test_other_datasets_are_refused_unless_forced(sweep, compare, capsys):
    make_run(sweep, "large", "method=plain", seed=1, changed={"data.image_size": 32})
    message = refused(capsys, "--group", "g", "--root", sweep)
    assert "data.image_size is 16 (dyrep-1), 32 (large)" in message and "--force" in message
    assert len(compare("--force")["groups"]) == 3


def test_a_changed_folder_of_images_is_another_dataset(sweep, compare, capsys):
    make_run(sweep, "grown", "method=plain", seed=4, metrics={"eval/images": 361})
    assert sorted(len(group["runs"]) for group in compare("--force")["groups"]) == [1, 3, 3]
    capsys.readouterr()
    assert "validation images is 360 (dyrep-1), 361 (grown)" in refused(
        capsys, "--group", "g", "--root", sweep
    )


def test_a_baseline_is_chosen_by_setting_or_choice(compare, sweep, capsys):
    assert compare("--baseline", "method=dyrep")["baseline"] == "method=dyrep"
    assert compare("--baseline", "method.kind=plain")["baseline"] == "method=plain"
    arguments = ("--group", "g", "--root", sweep, "--baseline")
    assert "did you mean 'method=plain'" in refused(capsys, *arguments, "method=plian")
    assert "did you mean 'method'" in refused(capsys, *arguments, "methd=plain")
    assert "2 groups have data=digits" in refused(capsys, *arguments, "data=digits")
    assert "is not KEY=VALUE" in refused(capsys, *arguments, "plain")
    assert "no group has method=[" in refused(capsys, *arguments, "method=[")


def test_a_group_of_several_launches_is_noted(sweep, compare):
    make_run(sweep, "later", "method=dbb", seed=1, command="another launch")
    assert "the runs come from 2 launches" in compare()["notes"]


# -- wrong arguments -------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_nearest(sweep, capsys):
    assert "did you mean 'plain-1'?" in refused(capsys, "plain1", "--root", sweep)
    assert "valid are: g" in refused(capsys, "--group", "first", "--root", sweep)
    assert "name runs, or a group" in refused(capsys, "--root", sweep)
    assert "name runs, or a group" in refused(capsys, "plain-1", "--group", "g", "--root", sweep)
    assert "name a file in it" in refused(capsys, "plain-1", "--root", sweep, "--json", sweep)


# -- table and page --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_shows_the_numbers_of_the_json(compare, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    result = compare()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    for number, group in enumerate(result["groups"], start=1):
        label = f"{number} {group['label']}"
        (row, *_) = [line for line in shown.splitlines() if line.startswith(label)]
        half = group["top1"]["high"] - group["top1"]["mean"]
        assert f"{group['top1']['mean']:.2f} ± {half:.2f}" in row
    assert f"{result['groups'][0]['versus']['p']:.3f}" in shown
    assert result["groups"][0]["versus"]["verdict"] in shown


def test_a_label_too_long_for_80_columns_is_cut_and_no_number_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for seed, rate in itertools.product((1, 2, 3), (0.05, 0.1)):
        changed = {"train.schedule": f"a-schedule-of-a-very-long-name-{rate}"}
        make_run(tmp_path, f"r-{rate}-{seed}", seed=seed, top1=90 + rate * seed, changed=changed)
    assert main(["--group", "g", "--root", str(tmp_path)]) == DONE
    shown = capsys.readouterr().out
    tests = shown[shown.index("Is it real") : shown.index("What training costs")]
    (row,) = [line for line in tests.splitlines() if line[:2] in ("1 ", "2 ") and "…" in line]
    assert re.search(r"… +3 +-0\.10 ± 0\.12 +\d\.\d{3} +\d\.\d{3}  ", row)
    assert "300k (450k)  20.0M (30.0M)  0.5 at 1, 20 at 64" in shown


def test_many_latencies_wrap_and_none_is_cut_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    times = {1: 836.4, 8: 1640.2, 64: 1938.9}
    metrics = {f"latency/fused/b{batch}/p50_ms": ms for batch, ms in times.items()}
    make_run(tmp_path, "r", metrics=metrics | {"latency/noisy": 1.0})
    assert main(["r", "--root", str(tmp_path)]) == DONE
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("836 at 1", "1,640 at 8", "1,939 at 64", "(noisy)"))


class Reader(html.parser.HTMLParser):
    """A parser that collects tags, and fails on tags that are not closed in order."""

    VOID = frozenset(("meta", "link", "br"))

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_valid_and_loads_nothing(sweep):
    runs = collect.read(collect.select(sweep, [], "g"))
    result = answer.answer("<script>alert(1)</script>", runs, [], force=False)
    result.groups[0].label = "$\\frac</svg><b>"
    text = page.render(result, runs)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert text.count("<svg") == 3
    assert "<script>alert" not in text and "</svg><b>" not in text
    for tag, attributes in reader.seen:
        assert tag not in ("link", "img", "iframe"), tag
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)", text)
    assert "plain-1" in text and "no difference shown" in text


def test_columns_of_settings_are_headed_by_the_groups(tmp_path):
    for name, rate in (("slow", 0.1), ("fast", 0.2)):
        changed = {"train.lr": rate, "train.weight_decay": rate, "train.warmup_epochs": rate}
        make_run(tmp_path, name, "method=plain", changed=changed)
    runs = collect.read(collect.select(tmp_path, ["slow", "fast"], None))
    result = answer.answer("t", runs, [], force=False)
    heads = re.findall(r'<th class="name">(.*?)</th>', page.render(result, runs))
    assert sorted(head.split(maxsplit=1)[1] for head in heads) == ["lr=0.1", "lr=0.2"]


@pytest.mark.parametrize(
    ("label", "head"),
    [
        ("method=dyrep train.lr=0.1 train.augment.crop=no", "method=dyrep lr=0.1 augment.crop=no"),
        ("data.root=/a.b=c/d.e model=x", "root=/a.b=c/d.e model=x"),
        ("digits · vgg_small · dyrep", "digits · vgg_small · dyrep"),
    ],
)
def test_the_head_of_a_column_leaves_out_the_section(label, head):
    assert table.brief(label) == head


def test_a_real_run_is_compared(finished, tmp_path):
    file = tmp_path / "a.json"
    code = main(
        [
            "small",
            "--root",
            str(finished.root),
            "--json",
            str(file),
            "--html",
            str(tmp_path / "a.html"),
        ]
    )
    assert code == DONE
    (group,) = json.loads(file.read_text())["groups"]
    found = json.loads((finished.root / "runs" / "small" / "eval" / "result.json").read_text())[
        "metrics"
    ]
    assert group["label"] == "digits · vgg_small · dyrep"
    assert (group["top1"]["n"], group["top1"]["mean"]) == (1, found["fused/top1"])
    assert group["sizes"]["flops_unfused"] >= group["sizes"]["flops"] > 0
    assert sum(group["layers"].values()) >= 1
    assert set(group["latency_ms"]) == {"1", "8"}


def test_a_run_older_than_a_setting_joins_the_group_with_its_default(tmp_path):
    for name, seed in (("new", 1), ("old", 2)):
        make_run(tmp_path, name, "method=dyrep", "data.channels=3", seed=seed)
    frozen = tmp_path / "runs" / "old" / "config.yaml"
    config = yaml.safe_load(frozen.read_text())
    for key in ADDED:
        *path, name = key.split(".")
        there = functools.reduce(dict.get, path, config)
        there.pop(name, None)  # some settings exist only for models of libraries
    frozen.write_text(yaml.dump(config))
    settings = [run.settings for run in collect.read(collect.select(tmp_path, [], "g"))]
    assert len(settings) == 2 and settings[0] == settings[1]
