"""Test that sbatch variables of a shell are applied, overruled by a setting, or refused."""

import pytest

from slurm import wishes
from slurm.job import Resources
from slurm.scheduler import Refused

OPEN = Resources(time_limit=10)
SET = Resources(time_limit=10, account="own", sbatch={"reservation": "own"})


@pytest.mark.parametrize(
    ("name", "value", "field", "becomes"),
    [
        ("SBATCH_ACCOUNT", "team", "account", "team"),
        ("SBATCH_PARTITION", "high", "partition", "high"),
        ("SBATCH_QOS", "long", "qos", "long"),
        ("SBATCH_CONSTRAINT", "a100", "constraint", "a100"),
        ("SBATCH_RESERVATION", "monday", "sbatch", {"reservation": "monday"}),
        ("SBATCH_MEM_PER_CPU", "2G", "sbatch", {"mem-per-cpu": "2G"}),
        ("SBATCH_OVERCOMMIT", "", "sbatch", {"overcommit": True}),
        ("SBATCH_OF_TOMORROW", "1", "sbatch", {"of-tomorrow": "1"}),
        ("SBATCH_ACCOUNT", "", "account", None),
        ("SBATCH_REQUEUE", "1", "sbatch", {}),
    ],
)
def test_a_variable_is_applied_if_the_settings_leave_its_option_open(name, value, field, becomes):
    assert getattr(wishes.obey(OPEN, {name: value}), field) == becomes


def test_a_setting_overrules_a_variable_of_the_shell():
    shell = {"SBATCH_ACCOUNT": "team", "SBATCH_RESERVATION": "monday", "OTHER": "x"}
    assert wishes.obey(SET, shell) == SET


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SBATCH_TIMELIMIT", "--time has a setting of its own"),
        ("SBATCH_MEM_PER_NODE", "--mem has a setting of its own"),
        ("SBATCH_GPUS", "--gpus has a setting of its own"),
        ("SBATCH_EXCLUSIVE", "--exclusive has a setting of its own"),
        ("SBATCH_NO_REQUEUE", "--no-requeue is what recovery builds on"),
        ("SBATCH_WAIT", "--wait is what recovery builds on"),
        ("SBATCH_SIGNAL", "--signal is what recovery builds on"),
        ("SBATCH_CLUSTERS", "jobs go to cluster here"),
        ("SLURM_CLUSTERS", "jobs go to cluster here"),
    ],
)
def test_a_variable_that_cannot_be_applied_is_refused_with_the_cure(monkeypatch, name, words):
    monkeypatch.setattr(wishes, "_cluster", lambda: "here")
    with pytest.raises(Refused, match=words) as error:
        wishes.obey(SET, {name: "60"})
    assert f"{name}=60" in str(error.value) and f"unset {name}" in str(error.value)
    assert wishes.obey(SET, {"SLURM_CLUSTERS": "here"}) == SET
