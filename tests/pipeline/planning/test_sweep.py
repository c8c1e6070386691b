"""Test `planning.sweep` and `planning.search`: runs are composed as Hydra does, or refused."""

import sys
from importlib.util import find_spec
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.compare.collect import ACCURACY
from pipeline.display.errors import UserError
from pipeline.planning import search, sweep
from pipeline.planning.compose import to_config
from pipeline.planning.conf import CONF
from pipeline.planning.named_run import wandb_id
from pipeline.planning.sweep import composed
from pipeline.records import rundir
from tests.runs import make_run

SEARCH = "hydra/sweeper=search"


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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["method=dbb", "method.branches=[1x1]", "train.lr=3", "root=o"],
        ["cluster=slurm", "cluster.resources.eval={nodes: 2}", "+cluster.sbatch.nice=1"],
        ["name=x-${seed}", "seed=4", "train.budget=null", "data.val_fraction=0.5"],
        ["~train.lr", "model=resnet18", "model.small_stem=true"],
        ["experiment=digits", "train.epochs=2", "train.augment={rotate: 3.0}"],
    ],
)
def test_one_run_is_composed_as_hydra_does(arguments):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        expected = hydra.compose("config", arguments)
    tree, _, overrides = sweep.single(arguments)
    assert overrides == arguments
    assert OmegaConf.to_container(tree) == OmegaConf.to_container(expected)
    tree.seed = "changed"
    assert sweep.single(arguments)[0].seed != "changed"


@pytest.mark.parametrize("arguments", [["seed=1,2", "train.lrr=1"], ["method=plain,nothing"]])
def test_arguments_that_hydra_refuses_are_refused(arguments):
    for asked in (composed, sweep.single):
        with pytest.raises((HydraException, OmegaConfBaseException)):
            asked(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=range(0)"], "seed=range(0) has no value"),
        (["seed=range(3,1)"], "has no value"),
        (["model=glob(zzz*)"], "has no value"),
        (["seed=1,2,1"], "seed=1,2,1 has 1 more than once"),
        (["seed=choice(1,1)"], "has 1 more than once"),
        (["train.lr=0.1,1e-1"], "has 0.1 more than once"),
        (["method=plain,plain"], "has plain more than once"),
        (["train.lr=interval(0.1,0.3)"], "is for a search"),
        (["train.lr=interval(0.3,0.1)", SEARCH], "holds nothing"),
        (["train.lr=tag(log,interval(0,1))", SEARCH], "no logarithm at 0"),
        (["seed=range(0)", SEARCH], "has no value"),
        (["train.epochs=1,1", SEARCH], "has 1 more than once"),
        (
            ["seed=range(0,3,0)"],
            "seed=range(0,3,0) cannot be gone through: range() arg 3 must not be",
        ),
        (["seed=range(1000000000)"], "has more than 10000 values"),
        (["seed=range(200)", "data.split_seed=range(200)"], "these are 40000 runs; sweep over at"),
        (
            ["method=plain,dyrep", "method=plain"],
            "method=plain,dyrep and method=plain set the same",
        ),
        (["seed=1,2", "seed=3,4"], "seed=1,2 and seed=3,4 set the same; leave one"),
        (["seed=1", SEARCH], "needs something to vary"),
        (["seed=1,2", SEARCH, "hydra.sweeper.n_trials=0"], "n_trials=0: must be a whole number"),
        (["seed=1,2", SEARCH, "hydra.sweeper.n_jobs=-1"], "n_jobs=-1: must be a whole number"),
    ],
)
def test_a_sweep_without_a_value_or_with_one_twice_is_refused(arguments, message):
    with pytest.raises(UserError) as refused:
        sweep.check_varied(arguments, SEARCH in arguments)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=1,2", "method=plain,dyrep", "model=glob(*18)", "group=g"],
        ["train.lr=interval(0.1,0.3)", "train.epochs=range(1,3)", SEARCH],
        ["train.lr=tag(log,interval(0.001,1))", SEARCH],
        ["hydra.sweeper.params={train.lr: 'interval(0,1)'}", SEARCH],
    ],
)
def test_a_sweep_of_distinct_values_is_accepted(arguments):
    sweep.check_varied(arguments, SEARCH in arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.branches=[1x1],['1x1']"], "are one run"),
        (["name=r-${seed}", "seed=1,2", "train.lr=0.1,0.2"], "are one run, 'r-1'"),
        (["name=a,b"], None),
        (["seed=1,2", "train.lr=0.1,0.2"], None),
    ],
)
def test_two_runs_of_a_sweep_that_are_the_same_are_refused(arguments, message):
    found = [(to_config(*run), *run[1:]) for run in composed(arguments)]
    if message is None:
        sweep.check_different(found)
        return
    with pytest.raises(UserError, match=message):
        sweep.check_different(found)


def test_a_refused_sweep_writes_nothing(launch):
    done = launch("-m", "seed=1,1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    assert not launch.root.exists()


def test_the_folder_of_a_search_is_below_the_root():
    given = ['root="~/x"', "hydra.sweep.subdir=."]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        tree = hydra.compose("config", given, return_hydra_config=True)
    assert tree.hydra.sweep.dir.startswith(str(Path("~/x/sweeps").expanduser()))


def test_the_folder_of_a_search_vanishes_after_a_dry_run(monkeypatch):
    given = ["launch", "-m", SEARCH, "dry_run=true", "seed=1,2"]
    monkeypatch.setattr(sys, "argv", list(given))
    with search.noted(given[2:]):
        folder = Path(sys.argv[3].removeprefix("hydra.sweep.dir="))
        assert folder.is_dir()
    assert not folder.exists()


def test_a_sweep_notes_that_its_group_has_other_runs(launch):
    make_run(launch.root, "earlier", group="g")
    done = launch("-m", "seed=1,2", "group=g", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("note: group 'g' has 1 other run; these join it\n")
    assert "note:" not in launch("-m", "seed=1,2", "group=h", "dry_run=true").stdout


@pytest.mark.parametrize(
    "file", sorted((CONF / "sweeps").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_command_of_a_wandb_agent_is_accepted(launch, file):
    """The code of W&B's agent builds the command, from the first value of each parameter."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    asked = yaml.safe_load(file.read_text())
    values = {
        key: {"value": values["values"][0] if "values" in values else values["min"]}
        for key, values in asked["parameters"].items()
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
    assert wandb_id(tmp_path) == own  # a shell set the variable, not an agent
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


IMPOSSIBLE = [
    (["model=timm", "model.name=resnet10t,nonsense"], "model.name=nonsense is no"),
    (["train.batch_size=64,5000"], "larger than the 1437 training images"),
    (
        ["model=timm", "data.image_size=16", "model.name=resnet10t,vit_tiny_patch16_224"],
        "16 pixels",
    ),
    (["train.optimizer=sgd,nonsense", "train.lr=0.1"], "train.optimizer=nonsense is no"),
]


def test_a_sweep_with_an_impossible_root_is_refused_before_its_first_run_begins(inside):
    first = inside.root
    inside.root = f"{first},/dev/null/x"
    code, _, errors = inside("-m", "tracking=disabled", "stage=prep")
    assert (code, errors.count("error: ")) == (2, 1), errors
    assert "/dev/null is not a directory; choose another root=" in errors
    assert not first.exists()


@pytest.mark.long
@pytest.mark.parametrize(("words", "message"), IMPOSSIBLE, ids=lambda asked: asked[-1])
def test_an_impossible_run_of_a_sweep_is_refused_before_the_first_begins(inside, words, message):
    code, _, errors = inside("-m", *words, "tracking=disabled")
    assert (code, errors.count("error: ")) == (2, 1), errors
    assert message in errors
    assert not inside.root.exists()
