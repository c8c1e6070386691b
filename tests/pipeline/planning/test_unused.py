"""Test that a launch refuses arguments that Hydra accepts but that would have no effect."""

import pytest

from pipeline.display.errors import UserError
from pipeline.records import named, rundir
from pipeline.records.provenance import version

REFUSED = [
    (["hydra.run.dir=/tmp/x"], "hydra.run.dir=/tmp/x would do nothing", "root=FOLDER"),
    (["hydra.job.chdir=true"], "hydra.job.chdir=true would do nothing", "leave it out"),
    (["hydra.verbose=true"], "hydra.verbose=true would do nothing", "pipeline.logs NAME"),
    (["hydra/launcher=basic"], "hydra/launcher=basic would do nothing", "cluster=slurm"),
    (["hydra/job_logging=default"], "would do nothing", "pipeline.logs NAME"),
    (["+hydra.job.env_set.A=1"], "would do nothing", "leave it out"),
    (["~hydra.run"], "would do nothing", "leave it out"),
    (["-m", "hydra.sweep.dir=/tmp/x", "seed=1,2"], "hydra.sweep.dir=/tmp/x", "root=FOLDER"),
    (["hydra/sweeper=search"], "hydra/sweeper is for a search", "add -m hydra/sweeper=search"),
    (["-m", "hydra.sweeper.max_batch_size=2", "seed=1,2"], "is for a search", "or leave it out"),
    (["~train.ema"], "~train.ema: a setting cannot be removed", "train.ema=null"),
    (["~train.augment"], "a setting cannot be removed", "train.augment=VALUE"),
    (["~seed"], "~seed: a setting cannot be removed", "seed=VALUE"),
    (["model.freeze={a:1}"], "model.freeze={a:1}: model.freeze is a list", "model.freeze=[VALUE"),
    (["~train.emma"], "~train.emma: train.emma is not a setting", "did you mean 'train.ema'?"),
    (["~lr"], "~lr: lr is not a setting", "did you mean 'train.lr'?"),
    (["seed={a:1}"], "seed={a:1}: seed is one value", "write seed=VALUE"),
    (["seed=[1,2]"], "seed=[1,2] must be", "a whole number"),
    (["+seed.a=1"], "+seed.a=1: seed is one value", "write seed=VALUE"),
    (["train.lr.x=1"], "train.lr.x=1: train.lr is one value", "write train.lr=VALUE"),
    (["train.optimizer={a:1}"], "train.optimizer is one value", "write train.optimizer=VALUE"),
    (["train.augment=[]"], "train.augment is a section", "train.augment.KEY=VALUE"),
    (["checkpoint=[]"], "checkpoint is a section", "checkpoint.KEY=VALUE"),
    (
        ["cluster=slurm", "cluster.resources.train=[]"],
        "cluster.resources.train is a section",
        "cluster.resources.train.KEY=VALUE",
    ),
    (["model.freeze.a=1"], "model.freeze.a=1: model.freeze is a list", "model.freeze=[VALUE"),
    (["+model.freeze.a=1"], "model.freeze is a list", "model.freeze=[VALUE"),
    (["tracking.also={a:1}"], "tracking.also is a list", "tracking.also=[VALUE"),
    (["again={a:1}"], "again is a list", "again=[VALUE"),
    (["fuse.exports={a:1}"], "fuse.exports is a list", "fuse.exports=[VALUE"),
    (
        ["cluster.name=slurm"],
        "cluster.name follows from the choice cluster=",
        "write cluster=slurm",
    ),
    (
        ["cluster.name=slrum"],
        "cluster.name follows from the choice",
        "did you mean 'cluster=slurm'",
    ),
    (["data.name=cifar10"], "data.name follows from the choice", "write data=cifar10"),
    (["method.name=dyrep"], "method.name follows from the choice", "write method=dyrep"),
    (["method.kind=plain"], "method.kind follows from the choice", "write method=plain"),
    (["train.name=imagenet"], "train.name follows from the choice", "write train=imagenet"),
    (["model.family=timm"], "model.family follows from the choice", "write model=timm"),
    (["model.name=resnet18"], "only the name of model=vgg_small", "write model=resnet18"),
    (["model.name=vgg11"], "only the name of model=vgg_small", "model=timm model.name=vgg11"),
    (["data=imagefolder", "data.root=s3://b/x"], "s3://b/x is an address", "mount or copy"),
    (["data=parquet", "data.root=hdfs://b/x"], "hdfs://b/x is an address", "mount or copy"),
    (["model.pretrained=gs://b/x"], "gs://b/x is an address", "give the file"),
]


@pytest.mark.parametrize(("arguments", "message", "cure"), REFUSED)
def test_an_argument_without_effect_is_refused_in_one_line_with_the_cure(
    inside, arguments, message, cure
):
    code, _, errors = inside(*arguments, "dry_run=true")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert message in errors and cure in errors, errors
    assert not inside.root.exists()


@pytest.mark.parametrize("scheme", ["s3", "gs", "https", "hdfs", "S3", "file"])
def test_a_root_that_is_an_address_is_refused(inside, scheme):
    inside.root = f"{scheme}://bucket/x"
    code, _, errors = inside("dry_run=true")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert f"{scheme}://bucket/x is an address" in errors
    with pytest.raises(SystemExit, match="2"):
        named.parser("status", "").parse_args(["--root", inside.root])
    with pytest.raises(UserError):
        rundir.absolute(inside.root)


def test_the_version_is_that_of_the_project(inside, capsys):
    with pytest.raises(SystemExit, match="0"):
        inside("--version")
    assert capsys.readouterr().out == f"dyrep {version()}\n"
