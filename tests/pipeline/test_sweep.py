"""The runs of a sweep are what Hydra itself would compose."""

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.compose import CONF
from pipeline.sweep import composed


@pytest.mark.parametrize(
    "arguments, runs",
    [
        (["seed=1,2,3", "method=dbb,plain"], 6),
        (["method=dyrep", "method.branches=[kxk],[kxk,1x1]", "train.lr=0.1"], 2),
        (["cluster=slurm", "cluster.resources.eval={nodes: 2}", "seed=range(2)"], 2),
        (["name=x-${seed}", "seed=4,5"], 2),
        (["model=glob(*18)", "train.ema=0.5"], 1),
        (["+cluster.sbatch.nice=1", "cluster=slurm", "seed=1,2"], 2),
        (["experiment=digits", "train.epochs=1,2"], 2),
    ],
)
def test_a_sweep_composes_what_hydra_composes(arguments, runs):
    found = [
        (OmegaConf.to_container(tree, resolve=True), overrides)
        for tree, _, overrides in composed(arguments)
    ]
    assert len(found) == runs
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for tree, overrides in found:
            expected = hydra.compose("config", overrides)
            assert tree == OmegaConf.to_container(expected, resolve=True)


@pytest.mark.parametrize("arguments", [["seed=1,2", "train.lrr=1"], ["method=plain,nothing"]])
def test_what_hydra_refuses_is_refused(arguments):
    with pytest.raises((HydraException, OmegaConfBaseException)):
        list(composed(arguments))
