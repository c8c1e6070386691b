"""Test that a launch refuses bad input with one line and exit code 2, and writes nothing."""

import os

import pytest
from PIL import Image

REFUSED = [  # TMP is the directory of the test
    (["model=resnet1"], "did you mean 'resnet18'"),
    (["trian=digits"], "did you mean 'train'"),
    (["train.epoch=3"], "did you mean 'train.epochs'"),
    (["trian.epochs=3"], "did you mean 'train'"),
    (["train.augment.rotat=3"], "did you mean 'train.augment.rotate'"),
    (["+invented.key=1"], "invented is not a setting"),
    (["+train.invented=1"], "train.invented is not a setting"),
    (["method=plain", "method.adjust_interval=2"], "only a setting of method=dyrep"),
    (["method=dyrep", "method.form=diverse"], "'batchnorm' or 'linear'"),
    (["method=dbb", "method.form=linear"], "set method.absorb=false"),
    (["method=dbb", "method.branches=[kxk,dw_1x1]"], "set method.form=linear"),
    (["train.epochs=many"], "train.epochs=many must be a whole number"),
    (["train.epochs=2.5"], "train.epochs=2.5"),
    (["train.deterministic=1"], "true or false"),
    (["seed=010"], "seed=010 must be a whole number; write 10"),
    (["seed=\u0661"], "seed=\u0661 must be a whole number; write 1"),
    (["seed=1\xa0"], r"seed='1\xa0' must be a whole number"),
    (['seed="3"'], 'seed="3" is a text'),
    (["name=\u0430b"], "use letters a-z, digits and"),
    (["--hydra-help"], "--hydra-help goes alone; leave root="),
    (["-m", "seed=choice(1,2),3"], "has a choice within a choice; write all values in one"),
    (["data.channels=true"], "data.channels=true must be a whole number"),
    (["data.channels=1.0"], "data.channels=1.0 must be a whole number; write 1"),
    (["data.channels=2"], "data.channels=2 must be 1 or 3"),
    (["cluster.nodes=true"], "cluster.nodes=true must be a whole number"),
    (["train.epochs=0"], "greater than 0"),
    (["train.budget.plain_epochs=0.5"], "train.budget.plain_epochs=0.5 must be greater"),
    (["train.budget.plain_epochs=inf"], "train.budget.plain_epochs=inf must be a finite"),
    (["train.budget.plain_epochs=nan"], "train.budget.plain_epochs=nan"),
    (["train.budget.plain_epochs=much"], "train.budget.plain_epochs=much must be a number"),
    (["train.budget.plain_epochs=1e300"], "must be less than or equal to 1000000000"),
    (["checkpoint.interval=9999999999 steps"], "'9999999999 steps' is not an interval"),
    (["group=caf\udce9"], "group=caf\\udce9 is not UTF-8; rename what it names"),
    (["data=imagefolder", "data.root=/x/\udcff"], "is not UTF-8"),
    (["train.budget.epochs=3"], "train.budget.epochs is not a setting"),
    (["train.budget=3"], "train.budget"),
    (["train.budget.plain_epochs=8", "train.epochs=3"], "leave train.epochs out, or set"),
    (["train.budget.plain_epochs=2", "train.warmup_epochs=2"], "train.warmup_epochs below"),
    (["train.batch_size=-64"], "greater than 0"),
    (["latency.batch_sizes=[0]"], "greater than 0"),
    (["latency.batch_sizes=[]"], "at least 1 item, not 0"),
    (["data.val_fraction=1.5"], "less than 1"),
    (["stage.run=[fuze]"], "'prep', 'train', 'fuse', 'eval' or 'latency'"),
    (["train.batch_size=5000"], "larger than the 1437 training images"),
    (["cluster.processes_per_node=3"], "cannot be split over 3 processes"),
    (["data.image_size=4"], "use at least 8"),
    (["data.image_size=32", "data.resize=16"], "set data.resize to 32 or more"),
    (["data.root=/my/pictures"], "not read by data=digits"),
    (["model.freeze="], "model.freeze= is empty; give model.freeze=VALUE or leave it out"),
    (["model.widths=[8,8]"], "model.widths.0=8 is not a list; write [8] in its place"),
    (["data=imagefolder"], "data.root is missing; give data.root=FOLDER, with train/CLASS/IMAGE"),
    (
        ["data=emnist"],
        "data.root is missing; give data.root=FOLDER, with emnist-SPLIT-train-images",
    ),
    (["data=mnist", "data.root=null"], "data.root is missing; give data.root=FOLDER, with train-"),
    (
        ["data=kmnist", "data.root=TMP/nowhere"],
        "TMP/nowhere is not a folder, so it holds no train-images",
    ),
    (
        ["data=emnist", "data.split=all", "data.root=/x"],
        "data.split=all must be 'byclass'",
    ),
    (["data=parquet"], "data.root is missing; give data.root=FOLDER, with .parquet files in it"),
    (
        ["data=parquet", "data.root=TMP/nowhere"],
        "TMP/nowhere is not a folder; data.root needs .parquet",
    ),
    (
        ["data=webdataset", "data.root=TMP/nowhere"],
        "TMP/nowhere is not a folder; data.root needs tar shards",
    ),
    (["data=imagenet"], "ILSVRC 2012 as extracted"),
    (["data=cifar100"], "give data.root=FOLDER, with cifar-100-python.tar.gz, from https://www"),
    (["hydra.runn.dir=x"], "hydra.runn.dir is not a setting of a launch"),
    (
        ["-m", "hydra.sweeper.nonsense=1", "seed=1,2"],
        "is for a search: add -m hydra/sweeper=search",
    ),
    (["lr=0.1"], "lr is not a setting; did you mean 'train.lr'?"),
    (["seeed=1"], "seeed is not a setting; did you mean 'seed'?"),
    (["data=imagefolder", "data.root=TMP/nowhere"], "TMP/nowhere is not a folder"),
    (
        ["data=cifar10", "data.root=TMP/nowhere"],
        "TMP/nowhere is not a folder, so it holds no cifar-10-python.tar.gz or cifar-10-batches-py/; get",
    ),
    (
        ["data=imagenet", "data.root=TMP/nowhere"],
        "TMP/nowhere is not a folder, so it holds no train/WNID",
    ),
    (["data.loader=fast"], "'auto', 'dali', 'memory' or 'torch'"),
    (["train.epochs=3", "train.warmup_epochs=3"], "train.warmup_epochs below train.epochs"),
    (
        ["train.optimizer=adamw"],
        "train.lr=0.1 is meant for another optimizer than adamw; give train",
    ),
    (
        ["train.optimizer=adamw", "train.momentum=0.8"],
        "train.momentum is a setting of train.optimi",
    ),
    (["train.optimizer_args={eps:1}"], "optimizer_args are for optimizers of timm"),
    (["train.schedule=polly"], "train.schedule=polly must be 'cosine'"),
    (["train.schedule=step"], "give train.decay_epochs, e.g. 30"),
    (["train.decay_epochs=3"], "decay_epochs=3 is a setting of train.schedule=step"),
    (["train.schedule=onecycle"], "train.warmup_epochs=0"),
    (["~train"], "train needs a choice"),
    (["train=null"], "train needs a choice"),
    (["~train.epochs"], "cannot be removed; leave that out, or give it a value, train.epochs=V"),
    (["train.epochs"], "not of the form KEY=VALUE"),
    (["group='${oc.env:SOME_API_KEY}'"], "group takes in the value of SOME_API_KEY, which looks"),
    (["cluster=slurm", "cluster.setup=['export X=${oc.env:DB_PASSWORD,none}']"], "of DB_PASSWORD"),
    (["stage=eval"], "stage=eval needs prep and train and fuse"),
    (["name=a/b"], "cannot be a directory name"),
    (["name='a b'"], "cannot be a directory name"),
    (["group=a/b"], "cannot be a directory name"),
    (["model=timm"], "model.name is missing; give model.name=VALUE"),
    (["model=resnet18", "model.name=vgg11", "model.small_stem=true"], "model.small_stem=false"),
    (["model=timm", "model.small_stem=true"], "a setting of model=mobilenet_v1 or resnet18"),
    (["model=timm"], "python -m pipeline.launch --models lists them"),
    (["-m", "seed=choice()"], "seed=choice() cannot be read: empty choice"),
    (["-m", "seed=choise(1,2)"], "seed=choise(1,2) cannot be read: Unknown function 'choise'"),
    (["-m", "name=x", "seed=1,2"], "one name for every run of a sweep"),
    (["-m", "method=plain,foo"], "method=foo is not a choice"),
    (["-m", "train.epochs=1,many"], "train.epochs=many must be a whole number"),
    (["cluster.partition=gpu"], "only a setting of cluster=slurm"),
    (["cluster=slurm", "cluster.sbatch.nice=1"], "add it: +cluster.sbatch.nice=VALUE"),
    (["cluster=slurm", "cluster.time_limit=soon"], "'soon' is not a duration"),
    (
        ["cluster=slurm", "cluster.resources.eval.node=2"],
        "did you mean 'cluster.resources.eval.nodes'",
    ),
    (["cluster=slurm", "cluster.resources.eval.nodes=3"], "cannot be split over 3 processes"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), REFUSED, ids=[ascii(" ".join(a)) for a, _ in REFUSED]
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(
    inside, tmp_path, arguments, message
):
    code, _, errors = inside(*(word.replace("TMP", str(tmp_path)) for word in arguments))
    assert code == 2
    assert message.replace("TMP", str(tmp_path)) in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert not inside.root.exists()


@pytest.mark.parametrize("umask", [0o777, 0o300, 0o100])
def test_a_umask_that_removes_the_users_own_permissions_is_refused(inside, umask):
    before = os.umask(umask)
    try:
        code, _, err = inside("stage=prep", "tracking=disabled")
    finally:
        os.umask(before)
    assert (code, err) == (
        2,
        f"error: umask {umask | 2:04o} takes your own permissions from all that is written; "
        "`umask 022`, and launch again\n",
    )
    assert not inside.root.exists()


def test_an_unused_recipe_refuses_nothing(inside):
    code, output, errors = inside("stage=prep", "train.batch_size=5000", "dry_run=true")
    assert (code, errors) == (0, "")
    assert "dry run" in output


@pytest.mark.parametrize("place", ["/proc/outputs", "/dev/null/outputs"])
def test_a_root_that_cannot_be_written_is_refused(launch, place):
    launch.root = place
    done = launch()
    assert done.returncode == 2
    assert "choose another root=" in done.stderr
    assert done.stderr.count("\n") == 1


def test_online_tracking_without_wandb_is_refused(launch, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.machinery as m\n"
        "find = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = classmethod("
        "lambda c, n, p=None, t=None: None if n == 'wandb' else find(n, p, t))\n"
    )
    done = launch("tracking=online", environment={"PYTHONPATH": str(hidden)})
    assert done.returncode == 2
    assert "needs wandb" in done.stderr
    assert not launch.root.exists()


def test_a_dry_run_writes_nothing(launch):
    done = launch("dry_run=true")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("dry run: nothing was touched")
    assert not launch.root.exists()


@pytest.mark.parametrize(
    ("side", "expected"), [(24, "data.image_size=64 enlarges the images 2.7 times"), (40, None)]
)
def test_a_plan_knows_the_classes_and_that_images_are_enlarged(launch, tmp_path, side, expected):
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (side, side + 9)).save(tmp_path / "images" / name / "x.png")
    (tmp_path / "images" / "a" / ".hidden.png").touch()
    done = launch(
        "dry_run=true", "data=imagefolder", f"data.root={tmp_path}/images", "train.batch_size=1",
        "data.val_fraction=0.1", "data.image_size=64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "for 3 classes" in done.stdout
    assert (expected or "") in done.stdout
    assert ("enlarges" in done.stdout) is bool(expected)


def test_a_refused_dry_run_does_not_report_success(launch, tmp_path):
    done = launch("dry_run=true", "data=imagefolder", f"data.root={tmp_path}/none")
    assert done.returncode == 2
    assert "nothing was touched" not in done.stdout
