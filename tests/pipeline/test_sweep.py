"""The runs of a sweep are what Hydra itself would compose."""

from importlib.util import find_spec

import hydra
import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from pipeline import rundir
from pipeline.compare.collect import ACCURACY
from pipeline.compose import CONF
from pipeline.runs import wandb_id
from pipeline.sweep import composed
from tests.runs import make_run


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


def test_a_sweep_says_whose_group_it_joins(launch):
    make_run(launch.root, "earlier", group="g")
    done = launch("-m", "seed=1,2", "group=g", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("note: group 'g' has 1 other runs; these join it\n")
    assert "note" not in launch("-m", "seed=1,2", "group=h", "dry_run=true").stdout


@pytest.mark.parametrize(
    "file", sorted((CONF / "sweeps").glob("*.yaml")), ids=lambda file: file.stem
)
def test_what_an_agent_of_wandb_starts_is_accepted(launch, file):
    """The command is put together by the agent's own code, with the first values of each choice."""
    asked = yaml.safe_load(file.read_text())
    values = {
        key: {"value": told["values"][0] if "values" in told else told["min"]}
        for key, told in asked["parameters"].items()
    }
    parts = {**create_sweep_command_args({"args": values}), "env": ["/usr/bin/env"]}
    words = []
    for word in create_sweep_command(asked["command"]):
        words += parts.get(word[2:-1], [word]) if word.startswith("${") else [word]
    assert words[:4] == ["/usr/bin/env", "python", "-m", "pipeline.launch"]
    there = [word for word in words[4:] if not word.startswith(("cluster=", "tracking="))]
    done = launch(*there, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert f"group={asked['name']}" in words
    assert asked["metric"]["name"] == ACCURACY


def test_a_run_of_a_wandb_sweep_has_the_id_its_agent_gave(tmp_path, monkeypatch):
    own = wandb_id(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert wandb_id(tmp_path) == own  # somebody's shell, not an agent
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert wandb_id(tmp_path) == "given"


@pytest.mark.skipif(find_spec("optuna") is not None, reason="Optuna is installed")
def test_a_search_without_optuna_says_what_to_install(launch):
    done = launch("-m", "hydra/sweeper=search", "train.lr=interval(0.01,0.3)")
    assert done.returncode == 2
    assert done.stderr == "error: a search needs Optuna: pip install hydra-optuna-sweeper\n"


def test_a_search_finds_the_best_of_its_trials(launch, tmp_path):
    pytest.importorskip("optuna")
    found = tmp_path / "found"
    done = launch(
        "-m", "hydra/sweeper=search", "train.epochs=1,2", "hydra.sweeper.n_trials=2", "group=s",
        "stage.run=[prep,train,fuse,eval]", "tracking=disabled", f"hydra.sweep.dir={found}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    best = yaml.safe_load((found / "optimization_results.yaml").read_text())
    results = (launch.root / "stages").glob("eval-*/result.json")
    assert best["best_value"] == max(rundir.read_json(r)["metrics"]["fused/top1"] for r in results)
