"""Test that paths, roots and packages mean the same in any current directory."""

import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline import cancel, status
from pipeline.config import flatten
from pipeline.execution import dispatch
from pipeline.planning import compose, named_run, sweep
from pipeline.planning.plan import make_plan
from pipeline.records import named
from tests.launcher import PROJECT
from tests.runs import make_run


def config(*overrides):
    return compose.to_config(*composed(*overrides))


def composed(*overrides):
    return sweep.single(list(overrides))


def test_all_spellings_of_a_folder_are_one_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    spellings = [
        f"{tmp_path}/pets", "pets", "./pets", "pets/", "pets/../pets", "pets//.", "'~/pets'",
        f"/{tmp_path}/pets/", f"../{tmp_path.name}/pets",
    ]  # fmt: skip
    made = [config("data=imagefolder", f"data.root={spelt}", "name=x") for spelt in spellings]
    assert {one.data.root for one in made} == {f"{tmp_path}/pets"}
    assert len({make_plan(one)[0].fingerprint for one in made}) == 1


def test_a_removed_current_directory_is_reported(inside, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    message = "the directory you are in is gone; cd to one that is there\n"
    for command in (status, cancel):
        with pytest.raises(SystemExit, match="2"):
            command.main(["x"])
        assert capsys.readouterr().err.endswith(message)
    assert inside("name=x") == (2, "", f"error: {message}")


@pytest.mark.parametrize("package", ["slurm", "dyrep"])
@pytest.mark.parametrize("path", ["", "other"])
def test_another_package_of_the_same_name_is_reported(tmp_path, package, path):
    (tmp_path / path / package).mkdir(parents=True)
    (tmp_path / path / package / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.status"], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / path}:{PROJECT}" if path else str(PROJECT)},
    )  # fmt: skip
    message = (
        f"{tmp_path / path} has a package {package}, which Python takes for this project's; take"
    )
    assert (message in done.stderr) is bool(path), done.stderr
    assert ("there are no runs in" in done.stderr) is (not path), done.stderr


def test_a_root_is_the_same_for_the_launcher_and_its_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config("root=o/").root == config("root=./o").root == str(tmp_path / "o")
    assert config().root == str(tmp_path / "outputs")


SEARCHED = [  # settings of data, and whether prep would search ./outputs for images
    (["data=imagefolder", "data.val_fraction=0.1"], True),
    (["data=webdataset"], True),
    (["data=parquet"], True),
    (["data=imagefolder"], False),
    (["data=mnist"], False),
]


@pytest.mark.parametrize(("data", "refused"), SEARCHED, ids=lambda asked: str(asked))
def test_a_root_among_the_images_is_refused(inside, tmp_path, data, refused):
    for path in (tmp_path, tmp_path / "link"):
        code, _, errors = inside(*data, f"data.root={path}")
        assert (code, errors.count("\n")) == (2, 1)
        assert (f"outputs is in {path}, where prep looks for images" in errors) == refused
        (tmp_path / "link").symlink_to(tmp_path) if path == tmp_path else None
    assert not inside.root.exists()


def test_a_root_below_the_training_images_is_refused(inside, tmp_path):
    (tmp_path / "train").symlink_to(tmp_path)
    errors = inside("data=imagefolder", f"data.root={tmp_path}")[-1]
    assert f"outputs is in {tmp_path}/train, where prep looks for images" in errors


def test_a_folder_without_training_images_is_refused(inside, tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w"), tarfile.open(tmp_path / "val-0.tar", "w"):
        pass
    inside.root = tmp_path.with_name(f"{tmp_path.name}-outputs")
    code, _, errors = inside("data=webdataset", f"data.root={tmp_path}")
    assert (code, errors) == (
        2,
        f"error: data=webdataset has no images to train on in {tmp_path}; add some\n",
    )


def test_no_created_folder_is_writable_by_everybody(tmp_path):
    script = "import os; from slurm import private; private.keep_out(); os.mkdir('x')"
    for umask, mode in ((0o000, 0o775), (0o002, 0o775), (0o022, 0o755), (0o077, 0o700)):
        place = tmp_path / oct(umask)
        place.mkdir()
        subprocess.run(
            [sys.executable, "-c", script], cwd=place, umask=umask, check=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )  # fmt: skip
        assert (place / "x").stat().st_mode & 0o777 == mode


def test_a_run_frozen_with_relative_paths_can_continue(tmp_path, monkeypatch):
    """Older versions resolved such paths below the checkout, and the fingerprints must stay."""
    monkeypatch.chdir(PROJECT)
    changed = {"root": "outputs", "data.root": "pets"}
    make_run(tmp_path, "old", "data=imagefolder", "data.root=/x", changed=changed)
    asked = ["name=old", "data=imagefolder", "data.root=pets", f"root={tmp_path}"]
    choices = {"data": "imagefolder"}
    (tmp_path / "runs" / "old" / "run.json").write_text(json.dumps({"choices": choices}))
    kept, *_ = named_run.settle(*composed(*asked))
    assert (kept.root, kept.data.root) == (str(tmp_path), "pets")
    assert named_run.settled(flatten(kept.model_dump()))["data.root"] == str(PROJECT / "pets")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["name=x"], ["name=x"]),
        (["seed=3", "train.epochs=9"], ["name=x"]),
        (["stage.run=[prep,train]"], ["name=x", "stage.run=[prep,train]"]),
        (["stage=fuse", "cluster.processes_per_node=2"],
         ["name=x", "stage=fuse", "cluster.processes_per_node=2"]),
        (["root=my runs"], ["name=x", "root='HERE/my runs'"]),
    ],
)  # fmt: skip
def test_the_command_that_continues_a_run_is_printed_in_full(
    overrides, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    notes = dispatch._to_continue(config("name=x", *overrides), overrides)
    expected = [word.replace("HERE", str(tmp_path)) for word in words]
    assert shlex.split(notes) == ["python", "-m", "pipeline.launch", *expected]


def test_the_command_that_continues_a_run_masks_secrets():
    overrides = ["cluster=slurm", "cluster.setup=['export HF_TOKEN=hf_0123456789abcdefghij']"]
    notes = dispatch._to_continue(config("name=x", *overrides), overrides)
    assert "HF_TOKEN=***" in notes and "hf_0123" not in notes


def test_a_command_names_the_root_if_it_is_not_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named.elsewhere(Path(tmp_path, "outputs")) == ""
    assert named.elsewhere(Path("/a b")) == " --root '/a b'"
