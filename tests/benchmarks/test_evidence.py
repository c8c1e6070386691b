"""Test that each file of results says when, where, from which source and how it was made."""

import json
import sys

import pytest

from benchmarks import PROJECT, RESULTS, evidence

FIELDS = {"date", "commit", "machine", "versions", "command"}
ROW = {"date", "commit", "machine", "torch", "protocol"}  # keys of each row of the growth study


def test_there_are_results():
    assert len(list(RESULTS.rglob("*.json*"))) > 10


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.name)
def test_each_file_of_results_says_how_it_was_made(file):
    made = json.loads(file.read_text())["made"]
    assert made.keys() >= FIELDS
    assert len(made["commit"]) == 40 and made["date"] >= "2026"
    assert all(made[field] for field in FIELDS)
    assert "unknown" not in made.values()


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.jsonl")), ids=lambda path: path.name)
def test_each_row_of_the_growth_study_says_how_it_was_made(file):
    for line in file.read_text().splitlines():
        assert json.loads(line).keys() >= ROW


def test_a_benchmark_writes_how_its_numbers_were_made(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--rounds", "3", "a b"])
    evidence.write(tmp_path / "a.json", {"rows": [1.5, float("nan")]})
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["rows"] == [1.5, None]
    assert found["made"].keys() >= FIELDS
    assert found["made"]["command"].endswith("--rounds 3 'a b'")
    assert "torch" in found["made"]["versions"] and "cores" in found["made"]["machine"]


@pytest.mark.parametrize(
    "file", sorted((PROJECT / "benchmarks").rglob("*.py")), ids=lambda path: path.name
)
def test_a_benchmark_writes_its_numbers_through_the_helper(file):
    text = file.read_text()
    assert "options.json" not in text or "evidence.write(" in text
