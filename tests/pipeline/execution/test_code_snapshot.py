"""Test `execution.code_snapshot`: jobs run a copy of the code, which later edits do not change."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline.config import Config
from pipeline.config.cluster import Local
from pipeline.display.errors import UserError
from pipeline.execution import code_snapshot
from pipeline.planning import named_run, safety, sweep
from pipeline.records import rundir
from slurm import private
from tests.launcher import PROJECT


@pytest.mark.long
def test_the_copy_runs_by_itself(tmp_path):
    kept = code_snapshot.freeze(tmp_path)
    command = [sys.executable, "-c", "import pipeline.run, dyrep, slurm; print(pipeline.__file__)"]
    done = subprocess.run(command, cwd=kept, capture_output=True, text=True)
    assert done.stdout.strip() == str(kept / "pipeline" / "__init__.py"), done.stderr


def test_equal_code_is_copied_once_and_edited_code_separately(tmp_path, monkeypatch):
    copy = tmp_path / "checkout"
    for package in code_snapshot.PACKAGES:
        shutil.copytree(PROJECT / package, copy / package)
    monkeypatch.setattr(code_snapshot, "PROJECT", copy)
    first = code_snapshot.freeze(tmp_path)
    assert code_snapshot.freeze(tmp_path) == first
    before = (first / "dyrep" / "fusion.py").read_text()
    (copy / "dyrep" / "fusion.py").write_text("edited")
    second = code_snapshot.freeze(tmp_path)
    assert second != first
    assert (second / "dyrep" / "fusion.py").read_text() == "edited"
    assert (first / "dyrep" / "fusion.py").read_text() == before


COPYING = """
import pathlib, shutil, sys, time
from pipeline.records import snapshot

def stuck(*_):
    print("begun", flush=True)
    time.sleep(60)

shutil.copy2 = stuck
snapshot.keep({"a.py": pathlib.Path(snapshot.__file__)}, pathlib.Path(sys.argv[1]))
"""


def test_a_launch_removes_an_unfinished_copy_of_a_killed_launch(tmp_path):
    config, choices, _ = named_run.settle(*sweep.single(["name=x", f"root={tmp_path}"]))
    code, old = tmp_path / "code", tmp_path / "code" / ".0123456789ab.x1y2z3_4"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    (code / "0123456789ab").mkdir()
    words = [sys.executable, "-c", COPYING, str(code / "ba9876543210")]
    with subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        (begun,) = code.glob(".ba9876543210.*")
        os.utime(begun, (0, 0))
        named_run.record(config, choices, [])
        assert begun.exists() and not old.exists()
        process.kill()
        process.wait()
    assert begun.exists()
    named_run.record(config, choices, [])
    assert [path.name for path in code.iterdir()] == ["0123456789ab"]


def edit(kept):
    (kept / "slurm" / "job.py").write_text("import os")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit, "holds other code"),
        (lambda kept: kept.chmod(0o777), r"is open to other users \(mode 0777\)"),
        (lambda kept: (kept / "dyrep").chmod(0o775), "holds dyrep, which is open"),
        (lambda kept: (kept / "dyrep" / "cost.py").chmod(0o666), "which others may write to"),
    ],
)
def test_a_copy_that_others_may_have_changed_is_not_executed(tmp_path, change, message):
    kept = code_snapshot.freeze(tmp_path)
    change(kept)
    with pytest.raises(UserError, match=message):
        code_snapshot.freeze(tmp_path)


def test_users_of_a_shared_root_have_code_and_pickles_of_their_own(tmp_path, monkeypatch):
    kept, jobs = code_snapshot.freeze(tmp_path), rundir.job_dir(tmp_path)
    private.own(jobs)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert code_snapshot.code_dir(tmp_path).name == f"{kept.name}-{me + 1}"
    assert rundir.job_dir(tmp_path).name == f"slurm-{me + 1}"
    with pytest.raises(PermissionError, match="belongs to"):
        private.own(jobs)


def test_a_copy_is_not_writable_by_others_even_if_the_checkout_is(tmp_path, monkeypatch):
    copy = tmp_path / "checkout"
    for package in code_snapshot.PACKAGES:
        shutil.copytree(PROJECT / package, copy / package)
    (copy / "slurm" / "job.py").chmod(0o666)
    monkeypatch.setattr(code_snapshot, "PROJECT", copy)
    kept = code_snapshot.freeze(tmp_path)
    assert (kept / "slurm" / "job.py").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("mode", "who"), [(0o755, None), (0o777, "everybody"), (0o1777, None)])
def test_the_users_who_may_write_to_a_root_are_named(tmp_path, mode, who):
    tmp_path.chmod(mode)
    assert private.writers(tmp_path) == who


@pytest.mark.parametrize(("members", "who"), [([], None), (["ann"], "group own")])
def test_a_group_without_other_members_counts_as_the_user(tmp_path, monkeypatch, members, who):
    monkeypatch.setattr(private.pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="own"))
    group = SimpleNamespace(gr_name="own", gr_mem=members)
    monkeypatch.setattr(private.grp, "getgrgid", lambda gid: group)
    tmp_path.chmod(0o775)
    assert private.writers(tmp_path) == who


@pytest.mark.parametrize("folder", ["stages", "runs/a"])
def test_a_root_that_others_may_write_to_causes_a_warning(tmp_path, capsys, folder):
    cluster = Local.model_construct(name="local")
    config = Config.model_construct(root=str(tmp_path), cluster=cluster, name="a")
    (tmp_path / folder).mkdir(parents=True)
    safety.warn(config)
    assert not capsys.readouterr().err
    (tmp_path / folder).chmod(0o777)
    safety.warn(config)
    assert f"warning: everybody may write to {tmp_path / folder}, " in capsys.readouterr().err
