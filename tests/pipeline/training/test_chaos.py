"""Test that a training that is killed at random ends with the same bits.

The benchmark `chaos` repeats this 200 times.
"""

import pytest

pytest.importorskip("nvidia.dali")

from benchmarks import chaos

pytestmark = pytest.mark.long


def test_two_kills_change_nothing(tmp_path):
    settings = [
        "cluster.processes_per_node=2", "train.epochs=6", "train.optimizer=adamw",
        "train.lr=0.003", "train.schedule=wsd", "train.layer_decay=0.8",
    ]  # fmt: skip
    report = chaos.rounds(tmp_path, kills=2, seed=60, settings=settings)
    assert report["kills"] == 2
    assert report["equal"] == report["rounds"] >= 1, report["differences"]
    assert {kill["signal"] for kill in report["log"]} == {"SIGKILL", "SIGTERM"}
    assert all(kill["left_behind"] == 0 for kill in report["log"])
    assert all(kill["repeated"] == 0 for kill in report["log"] if kill["stopped"])
