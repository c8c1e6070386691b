"""Test `planning.named_run`: what a run's directory records, and which later launches it refuses."""

import shutil

import pytest

from pipeline import sync
from pipeline.display.errors import UserError
from pipeline.planning import named_run, sweep
from pipeline.planning.plan import make_plan
from pipeline.records import named, rundir, store
from pipeline.records.schemas import Run, Submission


def test_a_launch_while_the_run_is_in_the_queue_lists_no_job_twice(tmp_path):
    store.write(Run(choices={}), tmp_path)
    for ids in ({"prep": "1", "train": "2"}, {"prep": "1", "train": "2"}, {"train": "3"}, {}):
        named_run.note_jobs(tmp_path, ids)
    assert store.read(Run, tmp_path).job_ids == [{"prep": "1", "train": "2"}, {"train": "3"}]


def test_a_run_that_another_launch_wrote_meanwhile_is_not_overwritten(tmp_path):
    """Both launches composed their configuration before the run's directory existed."""
    both = [sweep.single(["name=x", f"root={tmp_path}", seed]) for seed in ("seed=1", "seed=2")]
    (first, choices, _), (second, *_) = (named_run.settle(*each) for each in both)
    named_run.record(first, choices, [])
    now = named_run.settle(*both[0])[0]
    named_run.refuse_changed(first, now.model_copy(update={"wait": True}))
    with pytest.raises(UserError, match="'x' was launched with other settings at the same moment"):
        named_run.refuse_changed(second, now)


def test_a_run_that_is_only_half_written_is_taken_for_new(tmp_path, monkeypatch):
    """The run's directory has one of its two files while another launch is writing them."""
    asked = sweep.single(["name=x", f"root={tmp_path}"])
    config, choices, _ = named_run.settle(*asked)

    def settle_meanwhile(path, value):
        assert named_run.settle(*asked)[0] == config
        written.append(path.name)

    written = []
    monkeypatch.setattr(rundir, "write_yaml", settle_meanwhile)
    named_run.record(config, choices, [])
    assert written == ["config.yaml"]


def test_a_seed_that_no_stage_has_read_may_change(tmp_path):
    words = ["name=x", f"root={tmp_path}"]
    config, choices, _ = named_run.settle(*sweep.single([*words, "seed=1"]))
    named_run.record(config, choices, [])
    assert named_run.settle(*sweep.single([*words, "seed=2"]))[0].seed == 2


@pytest.mark.parametrize("lost", ["config.yaml", "run.json"])
def test_a_run_that_lost_a_file_is_not_taken_for_new(tmp_path, lost):
    asked = sweep.single(["name=x", "train.epochs=2", f"root={tmp_path}"])
    config, choices, _ = named_run.settle(*asked)
    plan = make_plan(config)
    run = named_run.record(config, choices, plan)
    plan[0].dir.mkdir(parents=True)
    store.note(Submission(executor="local", run="x"), plan[0].dir)
    (run / lost).unlink()
    with pytest.raises(UserError, match=rf"{lost} is gone; restore it, or `rm -r .*/x`, which"):
        named_run.settle(*sweep.single(["name=x", f"root={tmp_path}"]))
    shutil.rmtree(run)
    assert named_run.settle(*asked)[0] == config


def test_a_copy_of_a_run_gets_a_wandb_run_of_its_own(tmp_path):
    """Both folders named one W&B run, and sync sent the rows of both there."""
    asked = sweep.single(["name=a", f"root={tmp_path}"])
    config, choices, _ = named_run.settle(*asked)
    first = named_run.record(config, choices, [])
    copy = first.with_name("b")
    shutil.copytree(first, copy)
    assert named.copied_from(first) is None
    assert named.copied_from(copy) == "a"
    assert "a copy of run 'a'" in sync._send(copy)
    named_run.record(config.model_copy(update={"name": "b"}), choices, [])
    one, other = (store.read(Run, run) for run in (first, copy))
    assert (one.name, other.name) == ("a", "b")
    assert one.wandb != other.wandb
    assert named.copied_from(copy) is None
    shutil.rmtree(copy)
    first.rename(copy)  # which is no copy, and keeps its W&B run
    named_run.record(config.model_copy(update={"name": "b"}), choices, [])
    assert store.read(Run, copy).wandb == one.wandb
