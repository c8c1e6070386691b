"""Test `display.outside`: hostile names appear as text on pages, in cards and in a terminal."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt
from rich.table import Table

from pipeline import logs, status
from pipeline.compare import answer, collect, online, page, table
from pipeline.data.prepare import page as data_page
from pipeline.data.shards import Manifest, Split
from pipeline.display import exits
from pipeline.display.errors import BAD_INPUT, FAILED, StageFailed, UserError
from pipeline.display.outside import code, line, markdown, visible
from pipeline.display.terminal import Terminal
from pipeline.planning import summary
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import progress, rundir, store
from pipeline.report import write_report
from pipeline.stages.export import card
from tests.pipeline.display.odd import EVERY, NAMES, Skeleton, inert, same
from tests.runs import make_run


@pytest.fixture(params=NAMES)
def name(request):
    return NAMES[request.param]


def prepared(folder, name):
    split = Split(images=2, shards=(), counts=(1, 1), pixels=0)
    manifest = Manifest(
        classes=(name, "b"), size=None, mean=(0.5,) * 3, std=(0.2,) * 3,
        splits={"train": split, "val": split}, parameters={"data": {"name": name}},
    )  # fmt: skip
    manifest.save(folder)
    rundir.append_line(folder / "quarantine.jsonl", {"name": name, "reason": name})
    rundir.append_line(folder / "remarks.jsonl", {"name": name, "remark": name})


def test_the_page_of_the_data_shows_names_as_text(name, tmp_path):
    def made(name):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        prepared(folder, name)
        return data_page.render(folder, {"images": 4})

    same(made, name)


def reported(root, name):
    """Return the report of a run in which each name from outside is the given one."""
    run = make_run(root, f"run-{len(list(root.glob('runs/*')))}")
    facts = rundir.read_json(run / "run.json")
    choices = dict.fromkeys(("data", "model", "method"), name)
    facts |= {"name": name, "group": name, "command": name, "choices": choices, "created": name}
    rundir.write_json(run / "run.json", facts | {"source": {"revision": name, "dirty": True}})
    (run / "config.yaml").write_text(json.dumps({"name": name}))
    grown = {
        "epoch": 1, "step": 3, "parameters": 9, "flops": 9, "action": "grow", "layer": name,
        "branches": [name], "saliency": [[name, 1.0]], "error_eval": 0.0, "error_train": 0.0,
        "step_seconds_before": 1.0, "step_seconds_after": None,
    }  # fmt: skip
    (run / "train" / rundir.GROWTH).write_text(json.dumps(grown) + "\n")
    found = {"max_rel_error": 0.0, "flips": 0, "images": 1, "worst": [[name, 0.0]]}
    fusion = {
        "inputs": {name: found}, "images": 1, "suspicious": {name: name},
        "exports": {name: {"failed": name}}, "float32/max_rel_error": 0.0, "float32/flips": 0,
        "flops": 1, "flops_unfused": 1, "parameters": 1, "parameters_unfused": 1,
    }  # fmt: skip
    rundir.write_json(run / "fuse" / "fusion.json", fusion)
    mistake = {"png": "", "label": 0, "predicted": 1, "confidence": 0.5, "number": 1}
    judged = {
        "classes": [name, "b"], "confusion": [[1, 1], [0, 1]], "mistakes": [mistake],
        "reliability": {"fused": [{"images": 3, "confidence": 50.0, "accuracy": 60.0}]},
        "most_confused": [],
    }  # fmt: skip
    rundir.write_json(run / "eval" / "eval.json", judged)
    timed = {"threads": 1, "noise": [name], "skipped": {name: name}, "largest_batch": {name: 1}}
    rundir.write_json(run / "latency" / "latency.json", timed)
    for stage in ("prep", "train", "fuse", "eval", "latency"):
        result = rundir.read_json(run / stage / rundir.RESULT)
        result |= {"attempts": 1, "environment": {"device": name}}
        result["metrics"] |= {"epochs": 1, "agreement": 100.0}
        rundir.write_json(run / stage / rundir.RESULT, result)
    return write_report(run).read_text()


def test_the_report_shows_names_as_text(tmp_path):
    same(lambda name: reported(tmp_path, name), EVERY)


def compared(root, name):
    number = len(list(root.glob("*")))
    name = name.encode("utf-8", "replace").decode()  # a configuration holds valid UTF-8 only
    for seed in (1, 2):
        make_run(root / f"{number}", f"a-{seed}", seed=seed, changed={"model.name": name})
        make_run(root / f"{number}", f"b-{seed}", seed=seed, changed={"model.name": "other"})
    make_run(root / f"{number}", "out", finished=("prep",), changed={"model.name": name})
    runs = collect.read(collect.select(root / f"{number}", [], "g"))
    result = answer.answer(name, runs, None, False)
    result.notes.append(name)
    result.left_out[0]["why"] = name
    return result, runs


def test_the_page_of_a_comparison_shows_names_as_text(tmp_path):
    same(lambda name: page.render(*compared(tmp_path, name)), EVERY.replace("\udce9", "?"))


@pytest.mark.parametrize("name", [NAMES[key] for key in ("markup", "title", "line", "direction")])
def test_the_tables_of_a_comparison_show_names_as_text(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    result, _ = compared(tmp_path, name)
    table.show(result)
    out = capsys.readouterr().out
    assert inert(out)
    assert f"note: {line(name)}" in out
    assert any(row.startswith(line(name)) for row in out.splitlines())


def rendered(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def test_the_comparison_in_markdown_shows_names_as_text(tmp_path):
    every = EVERY.replace("\udce9", "?")
    same(lambda name: rendered(online._markdown(compared(tmp_path, name)[0])), every)


def carded(name):
    return {
        "architecture": {"name": name, "family": name}, "output": {"shape": ["batch", 1]},
        "input": {"shape": ["batch", 3, 8, 8]}, "licence": name, "source": name,
        "metrics": {"top1": 1.0, "top5": 1.0, "images": 1, "parameters": 1, "flops": 1},
        "data": {"name": name, "fingerprint": name, "train_images": 1},
        "fusion": {"max_rel_error": 0.0, "images": 1},
        "preprocess": {
            "classes": [name], "resize": 8, "image_size": 8, "interpolation": "bilinear",
            "mean": [0.0] * 3, "std": [1.0] * 3, "colour": "RGB",
        },
    }  # fmt: skip


def test_the_model_card_shows_names_as_text(name):
    outcome = {"file": "model.onnx", "max_rel_error": 0.0, "flips": 0}
    same(lambda name: rendered(card.markdown(carded(name), {"onnx": outcome})), name)


def test_the_model_card_says_which_epoch_was_chosen():
    description = carded("a")
    assert "epoch" not in card.markdown(description, {})
    description["metrics"]["epoch"] = 7
    assert "validation images; epoch 7, chosen as the best on these images" in card.markdown(
        description, {}
    )


def test_code_in_markdown_shows_names_as_text():
    for name in NAMES.values():
        shown = Skeleton(rendered(f"a {code(name)} b"))
        assert shown.tags == [("p", []), ("code", [])]
        assert shown.text.strip() == f"a {line(name)} b"


def test_a_console_shows_names_as_text(name, capsys):
    console = Terminal(width=200)
    shown = Table(name, title=name)
    shown.add_row(name)
    console.print(name, style="yellow")
    console.print(shown)
    out = capsys.readouterr().out
    assert inert(out)
    assert out.count(line(name)) == 4


def test_a_console_that_is_a_terminal_obeys_no_name(name, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    console = Terminal()
    console.file = sys.stdout
    console.print(name)
    out = capsys.readouterr().out
    assert "\x1b]" not in out and "\x9b" not in out and "\x1b[31m" not in out


def test_status_shows_names_as_text(name, tmp_path, capsys):
    run = make_run(tmp_path, "a", finished=())
    make_run(tmp_path, "b", finished=())
    row = {"done": 1, "total": 2, "text": name, "time": 0.0}
    rundir.write_json((run / "train").resolve() / rundir.PROGRESS, row)
    failed = {"time": 0.0, "event": "failed", "attempt": 1, "kind": "error", "message": name}
    rundir.append_line((run / "fuse").resolve() / rundir.EVENTS, failed)
    for names in ([], ["a"], ["a", "--json"]):
        assert status.main([*names, "--root", str(tmp_path)]) == 0
        assert inert(capsys.readouterr().out)


def test_a_renamed_run_directory_is_shown_as_text(name, tmp_path, capsys):
    run = make_run(tmp_path, "a", finished=())
    other = run.with_name("".join(c for c in name if c not in "/\0")[:60])
    run.rename(other)
    assert status.main(["--root", str(tmp_path)]) == 0
    assert inert(capsys.readouterr().out)
    assert logs.main([other.name, "prep", "--root", str(tmp_path)]) == 0
    assert inert(capsys.readouterr().out)


def test_a_log_is_shown_as_text(name, tmp_path, capsys):
    run = make_run(tmp_path, "a")
    log = rundir.log_file((run / "train").resolve(), 1)
    log.parent.mkdir()
    log.write_text(f"before {name}\nafter\n", errors="surrogatepass")
    assert logs.main(["a", "train", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert inert(out) and "\nafter\n" in out


def test_the_progress_of_a_stage_is_shown_as_text(name, tmp_path, capsys):
    row = {"done": 1, "total": 2, "text": name, "time": 0.0}
    rundir.write_json(tmp_path / rundir.PROGRESS, row)
    assert store.progress(tmp_path).text == line(name)
    with progress.Onlooker() as onlooker:
        onlooker.begin("train")
        onlooker._printed -= 60
        onlooker.show(tmp_path)
    assert inert(capsys.readouterr().err)


def test_the_plan_shows_names_as_text(name, tmp_path, capsys):
    config = SimpleNamespace(
        name="a", seed=1, root=name,
        **{part: SimpleNamespace(name=name) for part in ("data", "model", "method")},
    )  # fmt: skip
    step = PlannedStage(
        stage=SimpleNamespace(name="train"), question=None, dir=tmp_path,
        state="new", wanted=True, why=name,
    )  # fmt: skip
    summary.show_plan(config, [step], None, [name])
    summary.show_dry_run(Path(name))
    out = capsys.readouterr().out
    assert inert(out) and "stage" in out


def refusing(error):
    """Return a function that raises an error, as a command does."""

    def command():
        raise error

    return command


def test_an_error_is_one_line(name, capsys):
    assert str(UserError(name)) == line(name) == str(UserError(str(UserError(name))))
    assert exits.result_or_code(refusing(UserError(name)), "") == BAD_INPUT
    assert capsys.readouterr().err == f"error: {line(name)}\n"
    assert exits.result_or_code(refusing(StageFailed(f"tail\n{name}")), "") == FAILED
    assert inert(capsys.readouterr().err)


def test_readable_characters_stay():
    for text in ("Zürich", "犬\u3000猫", "می\u200cخواهم", "👩\u200d🔬", "a b", "1 → 2 ± 3 %"):
        assert visible(text) == line(text) == text
    assert visible("a\n\tb") == "a\n\tb"
    assert line("a\n\tb\r\n") == "a\\n\\tb\\n"
    assert markdown("resnet18 (v1.5)") == "resnet18 (v1.5)"
