"""Test `training.profile`: it profiles the given number of steps, once per training."""

import gzip
import json

import torch

from pipeline.records import rundir
from pipeline.report import run_data, write_report
from pipeline.training.profile import SETTLING, TABLE, TRACE, WARMUP, Profile
from tests.runs import make_run


def train(profile, steps):
    layer = torch.nn.Linear(4, 4)
    for _ in range(steps):
        layer(torch.ones(2, 4)).sum().backward()
        profile.step()


def test_the_profiler_records_the_given_number_of_steps_once(tmp_path):
    profile = Profile(2, tmp_path)
    train(profile, SETTLING + WARMUP + 1)
    assert not (tmp_path / TABLE).exists()
    train(profile, 5)
    table = rundir.read_json(tmp_path / TABLE)
    calls = {row["operator"]: row["calls"] for row in table["operators"]}
    assert table["steps"] == 2 and calls["aten::addmm"] == 1
    events = json.loads(gzip.decompress((tmp_path / TRACE).read_bytes()))["traceEvents"]
    assert sum(event["name"] == "aten::addmm" for event in events) == 2
    again = Profile(2, tmp_path)
    (tmp_path / TRACE).unlink()
    train(again, 20)
    assert not (tmp_path / TRACE).exists()


def test_a_stopped_training_writes_no_profile_and_a_short_one_writes_its_steps(tmp_path):
    for complete in (False, True):
        profile = Profile(9, tmp_path)
        train(profile, SETTLING + WARMUP + 3)
        profile.end(complete)
        assert (tmp_path / TABLE).exists() == complete
    assert rundir.read_json(tmp_path / TABLE)["steps"] == 3


def test_no_profile_is_written_unless_the_setting_is_given(tmp_path):
    train(Profile(None, tmp_path), 10)
    assert not list(tmp_path.iterdir())


def test_the_report_shows_the_table_of_operators(tmp_path):
    run = make_run(tmp_path, "r", finished=("prep",))
    facts = rundir.read_json(run / "run.json") | {"created": "now"}
    facts["source"]["dirty"] = False
    rundir.write_json(run / "run.json", facts)
    (run / "train" / rundir.GROWTH).unlink()
    row = {"operator": "aten::<b>", "calls": 1.5, "cpu_ms": 2.0, "gpu_ms": 0.0}
    rundir.write_json(run / "train" / TABLE, {"steps": 7, "operators": [row], "left_out": 3})
    assert run_data.read(run).profile["steps"] == 7
    page = write_report(run).read_text()
    assert "aten::&lt;b&gt;" in page and "mean over 7 steps" in page and "2.000" in page
