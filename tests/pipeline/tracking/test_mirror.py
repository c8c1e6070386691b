"""Test `tracking.mirror`: the files of a run arrive at a server, through the real client."""

import json

import pytest

from pipeline.records import rundir
from pipeline.tracking import rows

pytest.importorskip("wandb")


def numbers(summary):
    """Return the numbers of a summary that stages wrote."""
    return {
        k: v for k, v in summary.items() if isinstance(v, int | float) and k.split("/")[0] in STAGES
    }


STAGES = ("prep", "train", "fuse", "eval", "latency")


def identity(run):
    return rundir.read_json(run / "run.json")["wandb"]["id"]


def test_a_run_arrives_completely_and_once(recorder, run, python):
    for new in (6, 0):
        done = python("tracking", run, "--mode", "online")
        assert done.returncode == 0, done.stderr
        assert f"{new} new steps" in done.stdout
    (arrived,) = recorder.runs.values()
    assert arrived.name == identity(run)
    assert (arrived.display, arrived.group) == ("one", "g")
    assert {"digits", "vgg_small", "dyrep"} <= set(arrived.tags)
    assert arrived.steps == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in arrived.history if "step" in row] == arrived.steps
    assert arrived.history[2]["epoch/top1"] == 50.0 and arrived.history[2]["growth/grown"] == 1
    assert arrived.history[2]["saliency/features.3"] == 1.0
    assert [row["branch/features.3/1x1"] for row in arrived.history[2::3]] == [0.5, 0.25]
    assert arrived.config["train"]["value"]["batch_size"] == 64
    assert arrived.config["job_ids"]["value"] == ["7"]
    assert arrived.state == "finished"
    expected = rows.results(run)
    assert expected.items() <= arrived.summary.items()
    assert arrived.summary["train/gpu_hours"] == 0
    assert not recorder.unknown


def test_artifacts_have_their_lineage_and_are_not_sent_twice(recorder, run, python):
    for stage, file in (("train", "model"), ("fuse", "model")):
        (run / stage / f"{file}.safetensors").write_bytes(b"weights of " + stage.encode())
    data = run.parent.parent / "data" / "abc"
    data.mkdir(parents=True)
    (data / "manifest.json").write_text("{}")
    (run / "prep" / "data").symlink_to(data)
    (run / "report.html").write_text("<p>report")
    checkpoints = run / "train" / "checkpoints"
    checkpoints.mkdir()
    seal = {"step": 6, "epoch": 2, "attempt": 1, "bytes": 100}
    (checkpoints / "step-00000006-e002-a001.json").write_text(json.dumps(seal))
    for _ in range(2):
        done = python("tracking", run, "--mode", "online")
        assert done.returncode == 0, done.stderr
        assert "note:" not in done.stdout
    kinds = sorted(
        (a["name"], a["type"], a["state"])
        for a in recorder.artifacts.values()
        if a["type"] != "run_table"
    )
    mine = identity(run)
    assert kinds == sorted(
        [
            ("data-abc", "dataset", "COMMITTED"),
            (f"{mine}-fused", "model", "COMMITTED"),
            (f"{mine}-report", "report", "COMMITTED"),
            (f"{mine}-trained", "model", "COMMITTED"),
        ]
    )
    assert set(recorder.runs[mine].used) == {"data-abc"}
    assert not [
        name for name in recorder.files if "safetensors" in name
    ]  # weights are references, not uploads
    summary = recorder.runs[mine].summary
    assert {n: summary[n]["nrows"] for n in ("growth", "latency", "checkpoints")} == {
        "growth": 1, "latency": 3, "checkpoints": 1,
    }  # fmt: skip
    assert summary["report"]["_type"] == "html-file"


def test_an_unfinished_run_is_preempted_and_continues_later(recorder, run, python):
    history, result = run / "train" / "history.jsonl", run / "train" / "result.json"
    lines, text = history.read_text().splitlines(True), result.read_text()
    result.unlink()
    for count, steps in ((2, 1), (5, 3), (3, 3)):  # the third is cut back to a checkpoint
        history.write_text("".join(lines[:count]))
        python("tracking", run, "--mode", "online")
        (arrived,) = recorder.runs.values()
        assert arrived.steps == list(range(1, steps + 1))
        assert arrived.state == "preempted"
    history.write_text("".join(lines))
    result.write_text(text)
    python("tracking", run, "--mode", "online")
    assert arrived.steps == [1, 2, 3, 4, 5, 6]
    assert arrived.state == "finished"


def test_a_failed_run_is_marked_failed(recorder, run, python):
    (run / "eval" / "result.json").unlink()
    failed = {"time": 1.0, "event": "failed", "attempt": 1, "message": "out of luck"}
    rundir.append_line(run / "eval" / "events.jsonl", failed)
    python("tracking", run, "--mode", "online")
    (arrived,) = recorder.runs.values()
    assert arrived.state == "failed"


def test_a_damaged_line_is_named_and_the_rest_is_sent(recorder, run, python):
    history = run / "train" / "history.jsonl"
    lines = history.read_text().splitlines(True)
    lines[1] = "{ half\n"
    history.write_text("".join(lines))
    done = python("tracking", run, "--mode", "online")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot be read:") and "history.jsonl" in last
    (arrived,) = recorder.runs.values()
    assert arrived.steps == [1, 3, 4, 5, 6]
    assert arrived.state == "finished"


def test_the_api_key_is_neither_sent_nor_written(recorder, run, python):
    python("tracking", run, "--mode", "online")
    (arrived,) = recorder.runs.values()
    key = "k" * 40
    assert key not in json.dumps(arrived.config) + json.dumps(arrived.history)
    written = [path for path in run.rglob("*") if path.is_file()]
    assert not [path for path in written if key.encode() in path.read_bytes()]
