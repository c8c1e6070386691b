"""Test `records.environment`: advice about cores names a setting only where it has an effect."""

import pytest

from pipeline.records import environment
from slurm import place


@pytest.mark.parametrize(
    ("words", "more", "fewer"),
    [
        ({}, "", "taskset -c 0"),
        ({place.OWNER: "7.0"}, "cluster.cpus_per_process", "fewer cluster.cpus_per_process"),
    ],
)
def test_a_cluster_setting_is_advised_only_in_a_job(monkeypatch, words, more, fewer):
    monkeypatch.delenv(place.OWNER, raising=False)
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    assert more in environment.more_cores()
    assert ("cluster" in environment.more_cores()) is bool(words)
    assert fewer in environment.fewer_cores()
