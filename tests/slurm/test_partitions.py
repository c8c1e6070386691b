"""Test which partitions a job may run in, and what they allow and do to it."""

from pathlib import Path

import pytest

from slurm import preflight
from slurm.job import Resources
from slurm.sbatch import _gres
from slurm.scheduler import Refused

LOW = {"PartitionName": "low", "State": "UP", "MaxTime": "1:00:00", "Default": "YES",
       "PreemptMode": "REQUEUE"}  # fmt: skip
HIGH = LOW | {
    "PartitionName": "high",
    "MaxTime": "UNLIMITED",
    "Default": "NO",
    "PreemptMode": "OFF",
}
DOWN = LOW | {"PartitionName": "down", "State": "DOWN", "Default": "NO", "PreemptMode": "CANCEL"}


@pytest.fixture
def cluster(monkeypatch):
    """Return a function that sets the partitions of a cluster and its job submit plugin."""

    def make(*partitions, plugin="(null)"):
        config = {"JobSubmitPlugins": plugin, "PreemptMode": "REQUEUE",
                "PreemptType": "preempt/partition_prio"}  # fmt: skip
        monkeypatch.setattr(preflight.site, "partitions", lambda: list(partitions))
        monkeypatch.setattr(preflight.site, "config", lambda: config)
        preflight.preemption.cache_clear()

    yield make
    preflight.preemption.cache_clear()


@pytest.mark.parametrize(
    ("names", "plugin", "found"),
    [
        (None, "(null)", ["low"]),
        (None, "lua", ["low", "high", "down"]),
        ("high", "lua", ["high"]),
        ("low,high", "(null)", ["low", "high"]),
    ],
)
def test_settings_and_plugins_decide_the_partitions_of_a_job(cluster, names, plugin, found):
    cluster(LOW, HIGH, DOWN, plugin=plugin)
    assert [p["PartitionName"] for p in preflight.chosen(names)] == found


def test_an_unknown_partition_and_a_missing_default_are_refused(cluster):
    cluster(LOW, HIGH)
    with pytest.raises(Refused, match="no partition nowhere; choose one of low, high"):
        preflight.chosen("low,nowhere")
    cluster(HIGH)
    with pytest.raises(Refused, match="no partition is the default; choose one of high"):
        preflight.chosen(None)


@pytest.mark.parametrize(
    ("partitions", "words"),
    [
        ([LOW], "90 minutes is above the 60 minutes"),
        ([LOW, HIGH], None),
        ([DOWN], "partition down is down"),
        ([DOWN, HIGH], None),
        ([DOWN, LOW], "of partition low"),
    ],
)
def test_one_partition_that_takes_the_job_is_enough(partitions, words):
    job = Resources(time_limit=90)
    if words is None:
        preflight._check_partitions(job, partitions)
    else:
        with pytest.raises(Refused, match=words):
            preflight._check_partitions(job, partitions)


@pytest.mark.parametrize(
    ("names", "mode"), [("high", "OFF"), ("low,high", "REQUEUE"), ("low,down,high", "CANCEL")]
)
def test_the_worst_preemption_mode_of_several_partitions_counts(cluster, names, mode):
    cluster(LOW, HIGH, DOWN)
    assert preflight.preemption(names, None) == mode


@pytest.mark.parametrize(
    ("number", "kind", "asked"),
    [(0, None, None), (0, "a100", None), (2, None, "gpu:2"), (2, "a100", "gpu:a100:2")],
)
def test_gpus_are_requested_with_their_type(number, kind, asked):
    assert _gres(Resources(time_limit=5, gpus_per_node=number, gpu_type=kind)) == asked


def test_the_rehearsal_has_the_other_options_of_sbatch(monkeypatch, tmp_path):
    scripts = []
    monkeypatch.setattr(
        preflight.scheduler, "call", lambda *words: scripts.append(Path(words[-1]).read_text())
    )
    preflight._rehearse(Resources(time_limit=5, sbatch={"nodelist": "n99"}), tmp_path)
    assert "#SBATCH --nodelist=n99" in scripts[0]
