"""Test `planning.plan`: fingerprints, and the state, action and reason of each stage."""

import copy
import functools

import pytest

from pipeline.config import ADDED, sections
from pipeline.config.base import Section, written
from pipeline.display.errors import UserError
from pipeline.planning import compose, sweep
from pipeline.planning.conf import CONF
from pipeline.planning.plan import make_plan, verify
from pipeline.records import disk, rundir


@functools.cache
def tree(*overrides):
    return sweep.single(["name=x", *overrides])[0]


def config(tmp_path, *overrides):
    values = compose.values(tree(*overrides), {}, [])
    return compose.finish(values | {"root": str(tmp_path)})


def fingerprints(tmp_path, *overrides):
    return {step.stage.name: step.fingerprint for step in make_plan(config(tmp_path, *overrides))}


@pytest.mark.parametrize(
    ("override", "moved"),
    [
        ("train.lr=0.2", {"train", "fuse", "eval", "latency"}),
        ("seed=1", {"train", "fuse", "eval", "latency"}),
        ("method=plain", {"train", "fuse", "eval", "latency"}),
        ("fuse.images=8", {"fuse", "eval", "latency"}),
        ("eval.batch_size=64", {"eval"}),
        ("latency.batch_sizes=[2]", {"latency"}),
        ("prep.shard_images=100", {"prep", "train", "fuse", "eval", "latency"}),
        ("data.image_size=8", {"train", "fuse", "eval", "latency"}),
        ("data.loader=torch", {"train", "fuse", "eval", "latency"}),
        ("data.max_bad=0.1", {"prep", "train", "fuse", "eval", "latency"}),
        ("train.precision=tf32", {"train", "fuse", "eval", "latency"}),
        ("train.compile=blocks", {"train", "fuse", "eval", "latency"}),
        ("train.compile=off", set()),
        ("train.budget.plain_epochs=8", {"train", "fuse", "eval", "latency"}),
        ("train.budget=null", set()),
        ("method.strength=0.4", {"train", "fuse", "eval", "latency"}),
        ("method.strength=0.5", set()),
        ("cluster.processes_per_node=2", set()),
        ("tracking=disabled", set()),
        ("group=g", set()),
        ("stage=train", None),
    ],
)
def test_a_setting_changes_the_fingerprints_of_the_stages_that_read_it_and_of_later_ones(
    tmp_path, override, moved
):
    overrides = [override] if moved is not None else ["stage.run=[prep,train]"]
    before, after = fingerprints(tmp_path), fingerprints(tmp_path, *overrides)
    assert {name for name in before if before[name] != after[name]} == (moved or set())


def choice_with(section, name):
    """Return the overrides that choose a section with a given setting; [] if the default has it."""
    usual = {"model": "vgg_small", "method": "dyrep"}.get(section)
    if name in compose.has(section, usual or "*"):
        return [f"{section}={usual}"] if usual else []
    files = sorted(file.stem for file in (CONF / section).glob("*.yaml"))
    chosen = next(file for file in files if name in compose.has(section, file))
    return [f"{section}={chosen}", *(["model.name=any"] if chosen == "timm" else [])]


@pytest.mark.parametrize(("key", "usual"), ADDED.items())
def test_a_setting_added_later_at_its_default_is_not_part_of_a_fingerprint(tmp_path, key, usual):
    section, *path, name = key.split(".")
    choice = [] if path else choice_with(section, name)
    asked = config(tmp_path, *choice, f"{key}={written(usual)}")
    holder = functools.reduce(getattr, [section, *path], asked)
    default = type(holder).model_fields[name].default
    assert (default.model_dump() if isinstance(default, Section) else default) == usual
    question = next(step.question for step in make_plan(asked) if section in step.question.config)
    assert name not in functools.reduce(dict.get, [section, *path], question.config)
    assert getattr(sections({section: question.config[section]}), section) == getattr(
        asked, section
    )


def finish(step, content=b"abc"):
    step.dir.mkdir(parents=True)
    (step.dir / "out").write_bytes(content)
    outputs = {
        "out": {"path": "out", "bytes": len(content), "sha256": disk.sha256(step.dir / "out")}
    }
    rundir.write_json(step.dir / rundir.RESULT, {"seconds": 1.0, "metrics": {}, "outputs": outputs})


def test_the_files_decide_the_state_and_the_action_of_a_stage(tmp_path):
    prep, train, *_ = make_plan(config(tmp_path))
    finish(prep)
    train.dir.mkdir(parents=True)
    rundir.append_line(train.dir / rundir.EVENTS, {"time": 1.0, "event": "stopped"})
    prep, train, fuse, *_ = make_plan(config(tmp_path, "stage.run=[prep,train]"))
    assert (prep.state, prep.action) == ("done", "skip")
    assert (train.state, train.action) == ("unfinished", "continue")
    assert "stopped" in train.why
    assert (fuse.state, fuse.action) == ("new", "leave")


def test_a_stage_alone_needs_its_parents(tmp_path):
    with pytest.raises(UserError, match="stage=fuse needs prep and train"):
        make_plan(config(tmp_path, "stage=fuse"))


def test_the_reason_names_what_changed_since_the_run_was_made(tmp_path):
    old = make_plan(config(tmp_path))[0]
    from pipeline.planning.named_run import write_question

    old.dir.mkdir(parents=True)
    write_question(old)
    disk.link(rundir.run_dir(tmp_path, "x") / "prep", old.dir)
    new = make_plan(config(tmp_path, "prep.shard_images=7"))[0]
    assert "config.prep.shard_images 512 → 7" in new.why


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(b"ab"), "has 2 bytes instead of 3"),
        (lambda path: path.write_bytes(b"abd"), "it was edited"),
        (lambda path: path.unlink(), "is gone"),
    ],
)
def test_a_damaged_output_of_a_finished_stage_is_refused(tmp_path, harm, message):
    finish(make_plan(config(tmp_path))[0])
    plan = make_plan(config(tmp_path))
    verify(plan)
    harm(plan[0].dir / "out")
    with pytest.raises(UserError, match=message):
        verify(plan)


def test_every_choice_composes(tmp_path):
    others = {"hydra", "sweeps"}  # conf/sweeps/ holds the sweeps of W&B
    for group in sorted(p for p in CONF.iterdir() if p.is_dir() and p.name not in others):
        for file in sorted(group.glob("*.yaml")):
            more = ["data.image_size=32", "data.loader=auto"]
            more += ["model.name=any"] if "name: ???" in file.read_text() else []
            rooted = "root: ???" in file.read_text() or "data.root=FOLDER" in file.read_text()
            more += ["data.root=any"] if rooted else []
            target = f"{group.name}.target=torchvision.models:resnet18"
            more += [target] if "target: ???" in file.read_text() else []
            if file.stem == "structure":
                (tmp_path / "structure.json").write_text("{}")
                more += [f"method.structure={tmp_path}/structure.json"]
            config(tmp_path, f"{group.name}={file.stem}", *more)


def test_every_experiment_promises_source_result_cost_and_command():
    for file in (CONF / "experiment").glob("*.yaml"):
        header = file.read_text()
        for word in ("# Source:", "# Expected:", "# Cost:", "# Command:"):
            assert word in header, f"{file.name} lacks {word}"


def test_frozen_settings_cannot_be_changed(tmp_path):
    settings = config(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        copy.copy(settings).train.epochs = 3
