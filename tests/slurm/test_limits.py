"""Test which limits of a QOS or an account one job exceeds, as sacctmgr prints them."""

import pytest

from slurm import limits
from slurm.job import Resources
from slurm.scheduler import Refused, Unreachable

JOB = Resources(
    time_limit=90, nodes=2, cpus_per_node=8, gpus_per_node=4, gpu_type="a100", memory=64
)


@pytest.mark.parametrize(
    ("given", "above"),
    [
        ({}, None),
        ({"MaxWall": "01:30:00"}, None),
        ({"MaxWall": "01:00:00"}, "90 minutes is above MaxWall=01:00:00"),
        ({"MaxWall": "1-00:00:00"}, None),
        ({"MaxTRES": "cpu=16,gres/gpu=8,node=2,mem=128G"}, None),
        ({"MaxTRES": "cpu=15"}, "cpu=16 is above cpu=15 of MaxTRES"),
        ({"MaxTRES": "gres/gpu:a100=4"}, "gres/gpu:a100=8 is above gres/gpu:a100=4"),
        ({"MaxTRES": "gres/gpu:h100=1"}, None),
        ({"MaxTRES": "mem=65536M"}, "mem=131072 is above mem=65536"),
        ({"MaxTRES": "mem=1T"}, None),
        ({"MaxTRESPU": "node=1"}, "node=2 is above node=1 of MaxTRESPU"),
        ({"MaxTRESPA": "gres/gpu=6"}, "of MaxTRESPA"),
        ({"GrpTRES": "cpu=4,billing=100"}, "of GrpTRES"),
    ],
)
def test_a_limit_that_one_job_exceeds_is_named(given, above):
    found = next(limits.above(JOB, given), None)
    assert (found is None) if above is None else above in found


ROWS = {  # what sacctmgr prints, by a word of its arguments
    "assoc": "|cpu=4|\n",
    "long": "2-00:00:00|cpu=64||||\n",
    "normal": "||||||\n",
    "short": "00:10:00|||||\n",
    "over": "2-00:00:00|||||OverPartQOS\n",
}


@pytest.mark.parametrize(
    ("qos", "of_partitions", "words"),
    [
        ("long", ["N/A"], None),  # a limit of a QOS replaces that of the account
        ("normal", ["N/A"], "cpu=16 is above cpu=4 of MaxTRES"),
        ("long", ["short"], "MaxWall=00:10:00"),  # the QOS of a partition replaces that of the job
        ("over", ["short"], "cpu=16"),  # with OverPartQOS, the QOS of the job counts
        ("long", ["short", "N/A"], None),  # the second partition takes the job
        ("long", ["short", "short"], "MaxWall=00:10:00"),
    ],
)
def test_limits_of_a_qos_replace_those_of_an_account(monkeypatch, qos, of_partitions, words):
    def call(command, *asked):
        (which,) = [word for word in asked if word in ROWS]
        return ROWS[which] if "DefaultQOS" not in asked[-1] else "ml|\n"

    monkeypatch.setattr(limits.scheduler, "call", call)
    enforced = {"AccountingStorageEnforce": "associations,limits"}
    monkeypatch.setattr(limits.site, "config", lambda: enforced)
    job = Resources(time_limit=90, cpus_per_node=16, qos=qos)
    partitions = [{"QoS": name} for name in of_partitions]
    if words is None:
        limits.check(job, partitions)
    else:
        with pytest.raises(Refused, match=words) as error:
            limits.check(job, partitions)
        assert "wait for ever" in str(error.value)
    enforced.update(AccountingStorageEnforce="associations")
    limits.check(job, partitions)


def test_a_job_is_accepted_if_accounting_does_not_answer(monkeypatch):
    def call(*command):
        raise Unreachable("away")

    monkeypatch.setattr(limits.scheduler, "call", call)
    enforced = {"AccountingStorageEnforce": "safe"}
    monkeypatch.setattr(limits.site, "config", lambda: enforced)
    limits.check(JOB, [{"QoS": "N/A"}])
