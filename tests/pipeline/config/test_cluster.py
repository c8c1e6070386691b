"""Test `config.cluster`: the type and the number of GPUs that each stage gets."""

import pytest
from pydantic import ValidationError

from pipeline.config.cluster import Slurm

NOTHING = dict.fromkeys(
    ("nodes", "processes_per_node", "gpus_per_node", "gpus", "cpus_per_process", "memory",
     "time_limit", "partition", "qos", "constraint", "exclusive")
)  # fmt: skip


def cluster(eval=None, **facts):
    usual = {
        "name": "slurm", "nodes": 1, "processes_per_node": 1, "gpus_per_node": None,
        "cpus_per_process": 1, "memory": None, "time_limit": 60, "signal_seconds": 120,
        "partition": None, "account": None, "qos": None, "constraint": None, "exclusive": False,
        "retries": 3, "max_parallel": 1, "sbatch": {}, "srun": [], "setup": [], "hang_timeout": 9,
        "resources": dict.fromkeys(("prep", "train", "fuse", "latency"), NOTHING)
        | {"eval": NOTHING | (eval or {})},
    }  # fmt: skip
    return Slurm(**usual | facts)


@pytest.mark.parametrize(
    ("facts", "train", "evaluation"),
    [
        ({}, (None, None), (None, None)),
        ({"gpus": "a100:2"}, ("a100", 2), ("a100", 2)),
        ({"gpus": "a100"}, ("a100", None), ("a100", None)),
        ({"gpus": "a100", "gpus_per_node": 3}, ("a100", 3), ("a100", 3)),
        ({"gpus": "a100:2", "eval": {"gpus_per_node": 0}}, ("a100", 2), ("a100", 0)),
        ({"gpus": "a100:2", "eval": {"gpus": "t4:1"}}, ("a100", 2), ("t4", 1)),
        ({"gpus_per_node": 4, "eval": {"gpus": "t4:1"}}, (None, 4), ("t4", 1)),
    ],
)
def test_a_stage_gets_the_gpus_that_its_settings_name(facts, train, evaluation):
    given = cluster(**facts)
    assert (given.gpu_type("train"), given.gpus_of("train")) == train
    assert (given.gpu_type("eval"), given.gpus_of("eval")) == evaluation


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"gpus": "a100:x"}, "use TYPE or TYPE:NUMBER"),
        ({"gpus": "2"}, "use TYPE or TYPE:NUMBER"),
        ({"gpus": "a100:2", "gpus_per_node": 2}, "two numbers of GPUs"),
    ],
)
def test_gpus_without_a_type_or_with_two_numbers_are_refused(facts, words):
    with pytest.raises(ValidationError, match=words):
        cluster(**facts)
