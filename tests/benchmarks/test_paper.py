"""Test the settings with which `benchmarks.paper` runs the paper's experiments on a CPU."""

from argparse import Namespace

import pytest

from benchmarks import paper
from pipeline.planning import conf, named_run, sweep


@pytest.mark.parametrize(
    ("experiment", "method", "share"),
    [("cifar10_vgg16", "dyrep", 0.001), ("imagenet_repvgg_b3", "plain", 0.01)],
)
def test_an_experiment_is_small_and_can_be_planned(tmp_path, experiment, method, share):
    options = Namespace(method=method, share=share, pixels=32, epochs=2, batch=32)
    words = paper.settings(experiment, options)
    config = named_run.settle(*sweep.single([*words, f"root={tmp_path}"]))[0]
    assert config.data.name == "synthetic" and config.data.images < 14_000
    assert config.train.augment.policy == (None if "cifar" in experiment else "rand-m9-mstd0.5")
    assert {file.stem for file in (conf.CONF / "experiment").glob("*_*.yaml")} == {
        *paper.EXPERIMENTS
    }
