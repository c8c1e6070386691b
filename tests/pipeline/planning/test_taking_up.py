"""Test later launches of a name: settings that a stage has read stay, all others can change."""

import pytest

from pipeline.display.errors import UserError
from pipeline.planning import named_run, sweep
from pipeline.planning.plan import make_plan
from pipeline.records import rundir

RUN, FINISHED = rundir.EVENTS, rundir.RESULT


class Name:
    """A run named `x` that is launched repeatedly; its stages are marked by files, not executed."""

    def __init__(self, root):
        self.root = root

    def launch(self, *overrides):
        run = sweep.single([f"root={self.root}", "name=x", *overrides])
        config, choices, _ = named_run.settle(*run)
        named_run.record(config, choices, make_plan(config))
        return config

    def mark(self, stage, *events, finished=False, **facts):
        place = rundir.run_dir(self.root, "x") / stage
        place.resolve().mkdir(parents=True, exist_ok=True)
        for event in events:
            rundir.append_line(
                place / rundir.EVENTS, {"time": 1.0, "event": event, "attempt": 1, **facts}
            )
        if finished:
            result = {
                "stage": stage,
                "fingerprint": place.resolve().name.removeprefix(f"{stage}-"),
                "parents": {},
                "attempts": 1,
            }
            result |= {"seconds": 1.0, "metrics": {}, "outputs": {}, "environment": {}}
            rundir.write_json(place / rundir.RESULT, result)

    @property
    def facts(self):
        return rundir.read_json(rundir.run_dir(self.root, "x") / named_run.RUN)


@pytest.fixture
def name(tmp_path):
    return Name(tmp_path)


@pytest.fixture
def prepared(name):
    name.launch("stage=prep", "data=synthetic", "data.images=100", "train.batch_size=32")
    name.mark("prep", "finished", finished=True)
    return name


SAME = [
    ("model.freeze=features.0", "model.freeze=[features.0]"),
    ("train.compile=off", "train.compile=off"),
    ("train.budget=null", "train.budget.plain_epochs=null"),
    (
        "train.optimizer=adamw train.lr=0.01 train.optimizer_args={betas:[0.9,0.99]}",
        "train.optimizer=adamw train.lr=0.01 train.optimizer_args={betas:[0.9,0.99]}",
    ),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_the_overrides_of_the_first_launch_are_accepted_again(prepared, first, second):
    asked = prepared.launch(*first.split(), "train.batch_size=16")
    prepared.mark("train", "started")
    assert prepared.launch(*first.split()) == prepared.launch(*second.split()) == asked


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["train.budget.plain_epochs=2"], "train.budget=null"),
        (
            ["train.optimizer=adamw", "train.lr=0.1", "train.optimizer_args={eps: 1e-9}"],
            "train.optimizer_args=null",
        ),
        (["model.freeze=features.0"], "model.freeze=features.3"),
    ],
)
def test_setting_a_whole_section_to_null_is_a_change_too(prepared, first, second):
    prepared.launch(*first)
    prepared.mark("train", "started")
    with pytest.raises(
        UserError, match=rf"other settings: {second.partition('=')[0]} is .*, asked"
    ):
        prepared.launch(second)


def test_after_prep_the_model_and_the_recipe_can_be_chosen(prepared):
    config = prepared.launch("train=imagenet", "model=resnet18", "train.batch_size=16")
    assert (config.data.images, config.train.epochs, config.train.batch_size) == (100, 120, 16)
    assert config.model.small_stem is False
    assert config.method.last_adjust_epoch == 60  # derived from the new number of epochs
    assert prepared.facts["choices"]["model"] == "resnet18"
    again = named_run.frozen(rundir.run_dir(prepared.root, "x"))
    assert again.model == config.model
    prepared.mark("train", "started")
    assert prepared.launch().model == config.model


def test_an_earlier_choice_stays_unless_it_is_changed(prepared):
    prepared.launch("stage=prep", "model=mobilenet_v1", "model.width=0.5")
    config = prepared.launch("train.epochs=30", "model=mobilenet_v1")
    assert (config.model.width, config.train.batch_size) == (0.5, 32)
    assert (config.method.adjust_interval, config.method.last_adjust_epoch) == (3, 15)


def test_a_setting_that_prep_does_not_read_can_change_after_prep(prepared):
    assert prepared.launch("data.image_size=96", "data.resize=96").data.image_size == 96


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=digits", "data is synthetic, asked for digits"),
        ("data=synthetic data.images=7", "data.images is 100, asked for 7"),
        ("prep.quality=50", "prep.quality is 92, asked for 50"),
    ],
)
def test_a_setting_that_prep_has_read_cannot_change(prepared, override, message):
    with pytest.raises(UserError, match=message):
        prepared.launch(*override.split())


@pytest.mark.parametrize("override", ["seed=1", "model=vgg16", "train.lr=0.5", "method=plain",
                                      "train.augment={flip: true}", "data.image_size=96", "experiment=digits"])  # fmt: skip
def test_a_setting_that_train_has_read_cannot_change(prepared, override):
    prepared.launch("stage.run=[prep,train]")
    prepared.mark("train", "started")
    with pytest.raises(UserError, match="exists with other settings"):
        prepared.launch(override)
    assert prepared.launch("latency.repeats=33").latency.repeats == 33


def test_no_setting_can_change_while_a_stage_is_running(name):
    name.launch("data.image_size=32")
    name.mark("prep", "started")
    with pytest.raises(UserError, match="model is vgg_small, asked for vgg16"):
        name.launch("model=vgg16")
    name.mark("prep", "failed")
    assert name.launch("model=vgg16").model.name == "vgg16"


def test_an_experiment_is_a_choice_too(prepared):
    prepared.launch("stage=prep", "model=vgg16")
    assert prepared.launch("experiment=digits").model.name == "vgg_small"
    assert prepared.facts["choices"]["experiment"] == "digits"


def test_a_prep_that_refused_its_images_decides_nothing(name):
    name.launch("stage=prep", "data=synthetic", "data.images=100", "train.batch_size=32")
    name.mark("prep", "started", "failed", kind="input", message="1 of 100 images are bad")
    config = name.launch("stage=prep", "data.max_bad=0.05")
    assert (config.data.images, config.data.max_bad) == (100, 0.05)
    name.mark("prep", "started", "failed", kind="error", message="RuntimeError")
    with pytest.raises(UserError, match=r"data\.max_bad is 0\.05, asked for 0\.1"):
        name.launch("stage=prep", "data.max_bad=0.1")
