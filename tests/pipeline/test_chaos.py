"""Killed at random, a training ends with the same bits; the benchmark does it 200 times."""

import pytest

pytest.importorskip("nvidia.dali")

from benchmarks import chaos


def test_four_kills_change_nothing(tmp_path):
    report = chaos.rounds(
        tmp_path, kills=4, seed=7, settings=["cluster.processes_per_node=2", "train.epochs=10"]
    )
    assert report["kills"] == 4
    assert report["equal"] == report["rounds"] >= 1, report["differences"]
    assert {kill["signal"] for kill in report["log"]} == {"SIGKILL", "SIGTERM"}
    assert all(kill["left_behind"] == 0 for kill in report["log"])
    assert all(kill["repeated"] == 0 for kill in report["log"] if kill["stopped"])
