"""Test `compare --online`: it compares the runs of a W&B server, and creates a report there."""

import json

import pytest

from tests.runs import make_run

pytest.importorskip("wandb")


def test_a_comparison_online_equals_that_of_the_files_and_creates_a_report(
    recorder, tmp_path, python
):
    for method, top1 in (("plain", 90.0), ("dyrep", 92.0)):
        for seed in (1, 2, 3):
            make_run(
                tmp_path, f"{method}-{seed}", f"method={method}", seed=seed,
                top1=top1 + [0.2, -0.1, 0.0][seed - 1], gpus=2,
            )  # fmt: skip
    make_run(tmp_path, "late", "method=dyrep", seed=4, finished=("prep",))
    assert python("sync", "--root", tmp_path, "--group", "g").returncode == 0
    answers = {}
    for where in ((), ("--online",)):
        page = tmp_path / "told.json"
        done = python("compare", "--root", tmp_path, "--group", "g", "--json", page, *where)
        assert done.returncode == 0, done.stderr
        answers[where] = json.loads(page.read_text())
    here, there = answers.values()
    for one, other in zip(here["groups"], there["groups"], strict=True):
        for name in ("label", "top1", "versus", "cost", "sizes", "latency_ms", "pareto"):
            assert one[name] == other[name], name
    assert [row["run"] for row in there["left_out"]] == ["late"]
    assert not recorder.unknown
    (made,) = recorder.reports
    assert f"report: {recorder.url}" in done.stdout
    assert made["displayName"] == "Comparison of g"
    assert "| method=dyrep | 3 | 92.03" in made["spec"]


def test_a_group_or_run_that_the_server_lacks_is_refused(recorder, run, python):
    assert python("sync", "--root", run.parents[1]).returncode == 0
    for words, message in ((["--group", "h"], "no run of group 'h'"), (["x"], "no run 'x'")):
        done = python("compare", *words, "--online")
        assert done.returncode == 2
        assert message in done.stderr
    done = python("compare", "--group", "g", "--online", WANDB_API_KEY="w" * 40)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_trial_of_a_wandb_sweep_is_compared(recorder, run, python):
    assert python("sync", "--root", run.parents[1]).returncode == 0
    (arrived,) = recorder.runs.values()
    arrived.config["method"] = {
        "value": "dyrep"
    }  # a trial of an agent has a name here, not a section
    done = python("compare", "--group", "g", "--online")
    assert done.returncode == 0, done.stderr
    assert "digits · vgg_small · dyrep" in done.stdout
