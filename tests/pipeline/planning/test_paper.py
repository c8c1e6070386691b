"""Test the paper's experiments: each composes with each method and has the published settings."""

import functools

import hydra
import pytest

from pipeline.config import flatten
from pipeline.display.errors import UserError
from pipeline.planning import compose, explain, named_run, settings_along, sweep
from pipeline.planning.plan import make_plan

METHODS = ("plain", "dbb", "dyrep", "grow", "orepa", "acb", "repvgg")
# epochs, interval and last epoch of adjustments, weight decay, decay of norms, Nesterov
# (configs/strategies/DyRep/*.yaml of github.com/hunto/image_classification_sota)
PUBLISHED = {
    "cifar10_vgg16": (600, 15, 500, 1e-4, True, False),
    "cifar100_vgg16": (600, 15, 500, 1e-4, True, False),
    "imagenet_resnet18": (120, 5, 100, 1e-4, False, True),
    "imagenet_resnet34": (120, 5, 100, 1e-4, False, True),
    "imagenet_resnet50": (120, 5, 100, 1e-4, False, True),
    "imagenet_mobilenet_v1": (90, 5, 70, 4e-5, False, True),
    "imagenet_repvgg_a2": (120, 5, 100, 1e-4, False, True),
    "imagenet_repvgg_b2g4": (200, 5, 100, 1e-4, False, True),
    "imagenet_repvgg_b3": (200, 5, 100, 1e-4, False, True),
}
# further published settings; that of depthwise convolutions is in DBB's README
REPVGG = {"model.own_branches": True, "train.recalibrate": 200, "train.recalibrate_until": 100}
STRONG = {**REPVGG, "train.augment.policy": "rand-m9-mstd0.5", "train.augment.erase": 0.2,
          "train.label_smoothing": 0.1, "train.warmup_epochs": 5}  # fmt: skip
CUTOUT = {"train.augment.cutout": 16, "train.augment.cutout_clip": True, "model.hidden": 512}
FURTHER = {
    "cifar10_vgg16": CUTOUT,
    "cifar100_vgg16": CUTOUT,
    "imagenet_mobilenet_v1": {"method.widen_depthwise": 2},
    "imagenet_repvgg_a2": REPVGG,
    "imagenet_repvgg_b2g4": STRONG,
    "imagenet_repvgg_b3": STRONG,
}


@functools.cache
def configured(*words):
    """Return the configuration of each run of a sweep, by the name of its method."""
    runs = [named_run.settle(*run) for run in sweep.composed(["data.root=/x", *words])]
    return {config.method.name: config for config, *_ in runs}


@pytest.mark.long
@pytest.mark.parametrize("experiment", PUBLISHED)
def test_each_experiment_is_composed_and_planned_with_each_method(tmp_path, experiment):
    words = (f"method={','.join(METHODS)}", f"experiment={experiment}", f"root={tmp_path}")
    found = configured(*words)
    assert tuple(found) == METHODS
    for name, config in found.items():
        assert len(make_plan(config)) == 5
        window = [getattr(config.method, k, None) for k in ("adjust_interval", "last_adjust_epoch")]
        grows = name in ("dyrep", "grow")
        train = config.train
        recipe = (train.weight_decay, train.decay_norms, train.nesterov)
        assert (train.epochs, *(window if grows else PUBLISHED[experiment][1:3]), *recipe) == (
            PUBLISHED[experiment]
        )
        assert grows or window == [None, None]


@pytest.mark.parametrize("experiment", FURTHER)
def test_an_experiment_has_the_further_published_settings(experiment):
    config = configured(f"experiment={experiment}", "method=dbb")["dbb"]
    settings = flatten(config.model_dump(mode="json"))
    assert {key: settings[key] for key in FURTHER[experiment]} == FURTHER[experiment]


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_an_experiment_of_the_paper_trains_dyrep_unless_a_method_is_chosen(experiment):
    assert list(configured(f"experiment={experiment}")) == ["dyrep"]


def test_an_experiments_setting_for_another_choice_is_left_out_but_a_wrong_one_is_not():
    values = {"method": {"name": "plain", "kind": "plain", "adjust_interval": 5, "adjst": 1}}
    compose._leave_out(values, {"method": "plain"}, set())
    assert values["method"].keys() == {"name", "kind", "adjst"}
    values["method"]["adjust_interval"] = 5
    compose._leave_out(values, {"method": "plain"}, {"method.adjust_interval"})
    assert "adjust_interval" in values["method"]


def test_a_sweep_over_methods_may_set_what_only_some_of_them_have(capsys):
    found = sweep.composed(["method=plain,dyrep", "method.adjust_interval=2,3", "seed=1"])
    assert [overrides for *_, overrides in found] == [
        ["method=plain", "seed=1"],
        ["method=dyrep", "method.adjust_interval=2", "seed=1"],
        ["method=dyrep", "method.adjust_interval=3", "seed=1"],
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"note: method.adjust_interval={number} is not a setting of method=plain, whose runs go without it"
        for number in (2, 3)
    ]


@pytest.mark.parametrize(
    ("method", "taken"), [("plain", []), ("dyrep", ["method.adjust_interval=2", "method.grow=3"])]
)
def test_an_agent_and_a_search_leave_out_what_a_method_lacks(method, taken, capsys):
    """Optuna's sweeper composes each proposal alone, and W&B's agent starts single runs."""
    asked = ["method=plain,dyrep", "method.adjust_interval=2", "method.grow=choice(3,4)", "seed=1"]
    words = settings_along.addable(asked)
    assert words == [asked[0], f"++{asked[1]}", f"++{asked[2]}", asked[3]]
    words = [f"method={method}", words[1], "++method.grow=3", "seed=1"]
    with sweep.composing(None):
        tree = hydra.compose("config", words)
    tree, _, left = settings_along.of_proposal((tree, {"method": method}, words))
    assert left == [words[0], *taken, "seed=1"]
    assert {"adjust_interval", "grow"} & tree.method.keys() == (
        {"adjust_interval", "grow"} if taken else set()
    )
    plain = [word.removeprefix("++") for word in words]
    assert settings_along.of_trial(plain) == left
    notes = capsys.readouterr().out.splitlines()
    assert (
        notes == []
        if taken
        else notes[0].endswith("setting of method=plain, whose runs go without it")
    )


@pytest.mark.parametrize("words", [["method=plain,dbb", "method.grow=2"], ["method.grow=2"],
                                   ["method=plain,dyrep", "method.nothing=2"]])  # fmt: skip
def test_a_search_adds_nothing_that_no_choice_has(words):
    assert settings_along.addable(words) == words


def test_any_value_may_vary_beside_a_choice():
    words = ["data=digits,imagefolder", "data.root=/a,/b", "data.max_bad=0.1"]
    assert len(sweep.composed(words)) == 4


def test_choices_of_the_users_folder_have_settings_too(tmp_path):
    (tmp_path / "method").mkdir()
    written = (compose.CONF / "method" / "dyrep.yaml").read_text()
    (tmp_path / "method" / "mine.yaml").write_text(written)
    (tmp_path / "method" / "based.yaml").write_text("defaults: [dyrep]\ngrow: 2\n")
    words = ["method=plain,mine,based", "method.adjust_interval=2"]
    found = sweep.composed(words, str(tmp_path))
    assert [overrides[1:] for *_, overrides in found] == [[], [words[1]], [words[1]]]


@pytest.mark.parametrize("words", [["method=plain,dbb", "method.adjust_interval=2"],
                                   ["method=plain", "seed=1,2", "method.adjust_interval=2"],
                                   ["method=plain,dyrep", "method.nothing=2"]])  # fmt: skip
def test_a_setting_that_none_of_the_choices_has_is_refused(words):
    with pytest.raises(UserError), explain.explained():
        sweep.composed(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=timm", "model.name=resnet10t", "model.own_branches=true"), "is for RepVGG"),
        (("method=dbb", "method.form=linear", "method.absorb=false", "method.widen_depthwise=2"),
         "widen_depthwise=2 is for branches with batch norms"),
        (("train.recalibrate_until=3",), "needs train.recalibrate"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        for run in sweep.composed(list(words)):
            named_run.settle(*run)
