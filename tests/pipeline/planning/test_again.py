"""Test `again=`: which stages it repeats, which results it keeps, and what it refuses."""

import fcntl
import json
import os
import re
import shutil

import pytest

from pipeline import status
from pipeline.compare import collect, table
from pipeline.compare.answer import answer
from pipeline.display.errors import UserError
from pipeline.execution import dispatch, slurm
from pipeline.planning import again, compose, named_run, preflight, sweep
from pipeline.planning.plan import make_plan
from pipeline.records import disk, repeats, rundir
from pipeline.report import run_data
from pipeline.tracking import session
from tests.runs import composed, make_run

DONE = {"stage": "", "seconds": 1.0, "metrics": {}, "outputs": {}, "parents": {}}
STAGES = ("prep", "train", "fuse", "eval", "latency")


def config(root, *overrides):
    settings = json.loads(composed("name=x", *overrides)) | {"root": str(root)}
    return compose.validated(settings)


def finish(root, *overrides, stages=STAGES, state="done"):
    """Write the files of the named stages as a launch leaves them; return all stage directories."""
    found = {}
    for step in make_plan(config(root, *overrides)):
        found[step.stage.name] = step.dir
        if step.stage.name not in stages:
            continue
        step.dir.mkdir(parents=True, exist_ok=True)
        named_run.write_question(step)
        rundir.append_line(
            step.dir / rundir.EVENTS, {"event": "started", "attempt": 1, "time": 0.0}
        )
        if state == "done":
            rundir.write_json(step.dir / rundir.RESULT, DONE)
    return found


def actions(root, *overrides):
    return [step.action for step in make_plan(config(root, *overrides))]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["again=[latency]"], "skip skip skip skip repeat"),
        (["again=[eval]"], "skip skip skip repeat skip"),
        (["again=[fuse]"], "skip skip repeat repeat repeat"),
        (["again=[fuse,latency]"], "skip skip repeat repeat repeat"),
        (["again=[prep]"], "repeat repeat repeat repeat repeat"),
        (["again=latency", "stage=latency"], "leave leave leave leave repeat"),
        (["again=[train]", "stage.run=[train,fuse]"], "leave repeat repeat leave leave"),
        (["again=[]"], "skip skip skip skip skip"),
    ],
)
def test_selected_stages_after_a_repeated_one_are_repeated_too(tmp_path, overrides, expected):
    finish(tmp_path)
    assert " ".join(actions(tmp_path, *overrides)) == expected


def test_missing_images_are_refused_before_a_result_is_set_aside(tmp_path):
    gone = ("data=parquet", f"data.root={tmp_path}/gone", "again=[prep]")
    finish(tmp_path, *gone)
    found = preflight.data_error(config(tmp_path, *gone), make_plan(config(tmp_path, *gone)))
    assert "gone is not a folder; data.root needs .parquet files in it" in str(found)


def test_the_plan_says_why_a_stage_is_repeated(tmp_path):
    finish(tmp_path)
    prep, train, *_ = make_plan(config(tmp_path, "again=[prep]"))
    assert prep.why.startswith("asked for with again=")
    assert train.why.startswith("its parent prep is repeated")


def test_again_restarts_an_unfinished_stage_and_runs_a_new_one(tmp_path):
    finish(tmp_path, stages=["prep"])
    finish(tmp_path, stages=["train"], state="begun")
    assert actions(tmp_path, "again=[train]") == ["skip", "repeat", "run", "run", "run"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["again=[latncy]"], "did you mean 'latency'?"),
        (["again=[all]"], "valid are: prep"),
        (["again=[3]"], "no stage '3'"),
        (["again=null"], "name the stages to repeat"),
        (["again=[eval,eval]"], "again names eval twice; name it once"),
        (["again=[train]", "stage=latency"], r"stage.run=\[train,fuse,latency\]"),
    ],
)
def test_a_wrong_value_of_again_is_refused(tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        make_plan(config(tmp_path, *overrides))


@pytest.mark.parametrize("there", [[], ["prep"], ["prep", "train"], list(STAGES)])
@pytest.mark.parametrize("again", ["", "prep", "train", "fuse"])
@pytest.mark.parametrize("run", ["latency", "eval", "fuse", "prep,latency", "train,latency"])
def test_the_stages_that_an_error_advises_are_enough(tmp_path, there, again, run):
    finish(tmp_path, stages=there)
    settings = [f"again=[{again}]"]
    try:
        make_plan(config(tmp_path, *settings, f"stage.run=[{run}]"))
    except UserError as error:
        advised = re.search(r"stage\.run=\[[\w,]+\]", str(error))[0]
        assert set(run.split(",")) <= set(re.findall(r"\w+", advised))
        for _ in range(
            2
        ):  # an error knows only the nearest missing parent: a second error may follow
            try:
                make_plan(config(tmp_path, *settings, advised))
                return
            except UserError as error:
                advised = re.search(r"stage\.run=\[[\w,]+\]", str(error))[0]
        pytest.fail(f"the advised {advised} is refused, too")


def repeat(root, *overrides):
    """Set the old results aside and write new ones, as a launch with `again=` does."""
    plan = make_plan(config(root, *overrides))
    again.refuse_in_use(plan)
    moved = again.set_aside(plan)
    finish(root, *overrides, stages=[step.stage.name for step in plan if step.runs])
    return moved


def test_the_old_result_is_kept_and_the_next_launch_repeats_nothing(tmp_path):
    places = finish(tmp_path)
    (places["latency"] / "latency.json").write_text("old")
    for number in (1, 2):
        assert repeat(tmp_path, "again=[latency]") == [places["latency"]]
        assert set(actions(tmp_path)) == {"skip"}
        assert (places["latency"].parent / f"{places['latency'].name}.again-{number}").is_dir()
    kept = places["latency"].with_name(f"{places['latency'].name}.again-1")
    assert (kept / "latency.json").read_text() == "old"
    assert not (places["latency"] / "latency.json").exists()


def test_a_stage_after_a_repeated_one_is_out_of_date_until_it_is_repeated(tmp_path):
    finish(tmp_path)
    other = ["latency.repeats=11", "name=other"]
    finish(tmp_path, *other)
    repeat(tmp_path, "again=[train]", "stage=train")
    for overrides in ([], other):
        fuse = make_plan(config(tmp_path, *overrides))[2]
        assert (fuse.action, fuse.unusable) == ("repeat", "its parent train was repeated since")
    with pytest.raises(UserError, match="needs fuse again"):
        make_plan(config(tmp_path, "stage=latency", "again=[latency]"))
    repeat(tmp_path)
    assert set(actions(tmp_path)) == {"skip"}
    assert actions(tmp_path, *other) == ["skip"] * 4 + ["repeat"]


def test_status_says_which_stages_are_out_of_date(tmp_path, capsys):
    other = ["train.lr=0.3", "name=other"]
    finish(tmp_path, *other)
    named_run.record(config(tmp_path, *other), {}, make_plan(config(tmp_path, *other)))
    for repeated, count in ((False, 0), (True, 4)):
        if repeated:
            repeat(tmp_path, "again=[prep]", "stage=prep")
        assert status.main(["other", "--json", "--root", str(tmp_path)]) == 0
        output = capsys.readouterr().out
        assert output.count("older than prep, which was repeated since; launch again") == count


def test_runs_of_a_sweep_repeat_what_they_share_once(tmp_path):
    finish(tmp_path)
    finish(tmp_path, "seed=1")
    made = set(repeat(tmp_path, "again=[prep]"))
    second = make_plan(config(tmp_path, "seed=1", "again=[prep]"), made)
    assert [step.action for step in second] == ["skip"] + ["repeat"] * 4
    both = [
        *make_plan(config(tmp_path, "again=[prep]")),
        *make_plan(config(tmp_path, "again=[prep]")),
    ]
    assert len(again.set_aside(both)) == 5


def test_a_kill_while_results_are_set_aside_leaves_none_without_its_parent(tmp_path, monkeypatch):
    places = finish(tmp_path)
    monkeypatch.setattr(disk, "sync", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    for left in range(4, -1, -1):
        with pytest.raises(KeyboardInterrupt):
            again.set_aside(make_plan(config(tmp_path, "again=[prep]")))
        assert [places[name].exists() for name in STAGES] == [n < left for n in range(5)]


def test_repeated_data_get_a_folder_of_their_own(tmp_path):
    places = finish(tmp_path)
    repeat(tmp_path, "again=[prep]")
    noted = rundir.read_yaml(places["prep"] / rundir.STAGE)[repeats.NOTE]["prep"]
    assert rundir.data_dir(tmp_path, "abc", noted) != rundir.data_dir(tmp_path, "abc")


def test_a_stage_that_a_process_works_on_is_not_set_aside(tmp_path):
    places = finish(tmp_path)
    handle = os.open(places["latency"] / rundir.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"latency-.* is running"):
        again.set_aside(make_plan(config(tmp_path, "again=[fuse]")))
    os.close(handle)
    assert all(path.exists() for path in places.values())


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING"])
def test_a_stage_that_a_job_works_on_or_reads_is_not_set_aside(tmp_path, monkeypatch, state):
    from slurm.entry import Entry
    from slurm.records import Submission

    finish(tmp_path)
    other = finish(tmp_path, "latency.repeats=11", stages=["latency"], state="begun")["latency"]
    Submission(event="submitted", id="7", token="t").note(other)
    fields = dict.fromkeys(Entry.__dataclass_fields__)
    entry = Entry(
        **fields
        | {
            "id": "7",
            "name": "latency",
            "state": state,
            "reason": "",
            "comment": "t",
            "restarts": 0,
            "after": [],
        }
    )
    monkeypatch.setattr(again.stage_status, "queued", lambda: ({"7": entry}, ""))
    with pytest.raises(UserError, match=rf"{other.name} is .*\(job 7\)"):
        again.refuse_in_use(make_plan(config(tmp_path, "again=[fuse]")))
    again.refuse_in_use(make_plan(config(tmp_path, "again=[latency]")))


def test_again_is_not_frozen_with_the_configuration(tmp_path):
    def settled(*overrides):
        run = sweep.single([f"root={tmp_path}", "name=x", *overrides])
        return named_run.settle(*run)

    first, choices, _ = settled("again=[latency]")
    named_run.record(first, choices, make_plan(first))
    assert repeats.NOTE not in rundir.read_yaml(tmp_path / "runs" / "x" / "config.yaml")
    assert settled("again=[eval]")[0].again == ["eval"]
    assert settled()[0].again == []


def test_a_noisy_latency_comes_with_the_command_that_times_it_again(tmp_path):
    run = make_run(tmp_path / "my_runs", "n")
    rundir.write_json(run / "latency" / "latency.json", {"noise": ["neighbours"]})
    story = run_data.read(run)
    assert story.noise == ["neighbours"]
    assert story.time_again == (
        "python -m pipeline.launch name=n stage=latency 'again=[latency]' "
        f"root={tmp_path / 'my_runs'}"
    )


def test_a_comparison_marks_noisy_latencies_and_outdated_stages(tmp_path):
    noisy = {"latency/noisy": 1.0}
    named = [
        make_run(tmp_path, "a", "method=dyrep", seed=0, metrics=noisy),
        make_run(tmp_path, "b", "method=dyrep", seed=1),
        make_run(tmp_path, "c", "method=plain", metrics=noisy),
    ]
    result = answer("t", collect.read(named), [], False)
    assert {g.label: g.noisy for g in result.groups} == {"method=dyrep": 1, "method=plain": 1}
    shown = {g.label: table.latencies(g) for g in result.groups}
    assert shown["method=dyrep"].endswith("(1 of 2 noisy)")
    assert shown["method=plain"].endswith("(noisy)")
    cure = f"name=a stage=latency 'again=[latency]' root={tmp_path}, and so for each of them"
    assert [note for note in result.notes if "noisy" in note and note.endswith(cure)]
    train = (named[0] / "train").resolve()
    shutil.copytree(train, train.with_name(f"{train.name}.again-1"))
    rundir.write_yaml(
        (named[0] / "fuse").resolve() / rundir.STAGE,
        {"stage": "fuse", "config": {}, "parents": {}, "fingerprint": "f"},
    )
    assert collect.read(named)[0].state == "mismatched"


def test_a_repeated_training_is_another_run_in_wandb(tmp_path):
    run = make_run(tmp_path, "w")
    before = session._id(run)
    (train := (run / "train").resolve()).with_name(f"{train.name}.again-1").mkdir()
    assert session._id(run) == f"{before}-1"


def test_a_submission_returns_the_stages_that_it_repeats(tmp_path, monkeypatch):
    directory = tmp_path / "prep-0"
    monkeypatch.setattr(slurm, "submit", lambda _: [directory])
    outcome = dispatch.submit([slurm.Launch(config=config(tmp_path), plan=[])])
    assert (outcome.code, outcome.repeated) == (0, {directory})
