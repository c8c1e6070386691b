"""Test `planning.arguments`: wrong arguments are refused, and the cures that errors print work."""

import re
import shlex

import pytest
from omegaconf import OmegaConf

from pipeline.planning import arguments
from pipeline.planning.conf import CONF

NO_CHOICE = [
    ("experiment=nonsense", "digits, "),
    ("experiment=null", "needs a choice; valid are: "),
    ("experiment=", "digits, "),
    ("experiment=Digits", "did you mean 'digits'"),
    ("experiment=digits.yaml", "did you mean 'digits'"),
    ("experiment=../data/digits", "did you mean 'digits'"),
    ("experiment=[digits,nonsense]", "needs one choice"),
    ("experiment=[digits]", "needs one choice"),
    ("experiment=${model}", "digits, "),
    ("experiment@_global_=digits", "needs a choice"),
    ("+experiment=nonsense", "digits, "),
    ("++experiment=nonsense", "digits, "),
    ("+experiment=digits", "write experiment=digits"),
    ("~experiment", "needs a choice"),
    ("model=RESNET18", "did you mean 'resnet18'"),
    ("model=true", "needs one choice"),
    ("model=1", "needs one choice"),
    ("++model=resnet18", "write model=resnet18"),
    ("model=[resnet18]", "needs one choice"),
    ("data@model=digits", "needs a choice"),
    ("stage=prep,train", "stage.run=[prep,train]"),
    ("model=vgg16,vgg_small", "-m model=vgg16,vgg_small"),
    ("hydra/sweeper=nonsense", "add -m hydra/sweeper=search"),
    ("hydra/nonsense=x", "is not a setting"),
    ("+sweeps=methods", "`wandb sweep"),
    ("+defaults=[{model:resnet18}]", "is not a setting"),
    ("--config-path=/tmp", "--config-path is not for launch"),
    ("-cn=foo", "--config-name is not for launch"),
    ("--experimental-rerun=x.pickle", "--experimental-rerun is not for launch: name=NAME"),
    ("--shell-completion", "--shell-completion is for shells"),
    ("--resolve", "--resolve goes with --cfg job alone"),
    ("--package=train", "--package goes with --cfg job alone"),
    ("hydra.searchpath=[file:///x]", "--config-dir DIR adds choices of yours"),
    ("--nonsense", "unrecognized arguments: --nonsense"),
    ("foo", "is not of the form KEY=VALUE"),
    ("=5", "is not of the form KEY=VALUE"),
    ("fuse.licence=a\nb", "control character"),
    ("name=a\0b", "cannot be a directory name"),
    ("optional experiment=digits", "is not of the form KEY=VALUE"),
]


@pytest.mark.parametrize(("argument", "message"), NO_CHOICE)
def test_a_wrong_argument_is_refused_in_one_line(inside, argument, message):
    code, _, errors = inside(argument)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert message in errors


@pytest.mark.parametrize("name", ["nonsense", "serach", "ax"])
def test_an_unknown_sweeper_is_refused_in_one_line(inside, name):
    code, _, errors = inside("-m", f"hydra/sweeper={name}", "seed=1,2")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert f"there is no hydra/sweeper={name}; " in errors and "search" in errors


def test_the_plugins_own_sweeper_is_refused_because_it_minimizes_the_score(inside):
    code, _, errors = inside("-m", "hydra/sweeper=optuna", "seed=1,2")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "looks for the lowest top-1; write hydra/sweeper=search" in errors


def test_settings_may_stand_on_both_sides_of_an_option():
    asked = arguments.read(
        ["seed=1,2", "-m", "method=plain", "--package", "x", "name=a", "-c", "job"]
    )
    words = ["-m", "--package", "x", "-c", "job", "seed=1,2", "method=plain", "name=a"]
    assert asked.words == words
    assert asked.settings == ["seed=1,2", "method=plain", "name=a"]


def test_a_wrong_choice_of_a_sweep_is_refused(inside):
    code, _, errors = inside("-m", "experiment=digits,nonsense")
    assert code == 2
    assert "experiment=nonsense is not a choice" in errors


FOLDERS = ["~/x", "a=b", "a#b", "a@b", "a b", "(b)", "ä", "日本", "{a}", "a'b", 'a"b', "a;b", "5",
    "1e3", "a&b", "a!b", "100%", "a:b", "C:\\x\\y", "a\\", "007", "$HOME", "true"]  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_may_be_called_anything(inside, folder):
    code, _, errors = inside("data=imagefolder", f"data.root={folder}")
    assert code == 2
    assert f"{folder.removeprefix('~/')} is not a folder" in errors


@pytest.mark.parametrize("name", ["007", "1e3", "1_000", "1.5", "true", "inf", "a=b", "2026-01-01"])
def test_a_name_may_look_like_a_number(inside, name):
    code, out, errors = inside(f"name={name}", f"group={name}", "dry_run=true")
    assert code == 0, errors
    assert out.startswith(f"{name}  digits")


CURES = [
    (["data=imagefolder", "data.root=/x/a,b"], "for one text, ", "/x/a,b is not a folder"),
    (["data=imagefolder", "data.root=[a]"], "for a text, write ", "[a] is not a folder"),
    (["data=imagefolder", "data.root={a:1}"], "for a text, write ", "{a:1} is not a folder"),
    (["latency.batch_sizes=1,8"], "for all in one run, ", None),
    (["stage=prep,train"], "for these stages, ", None),
    (["method=plain,dyrep"], "for a run with each, -m ", None),
]


@pytest.mark.parametrize(("arguments", "before", "then"), CURES)
def test_the_printed_cure_works_in_a_shell(inside, arguments, before, then):
    code, _, errors = inside(*arguments)
    assert code == 2
    cure = shlex.split(errors.split(before)[1].split(";")[0])
    sweep = ["-m"] if "-m " in before else []
    code, _, errors = inside(*sweep, *arguments[:-1], *cure, "dry_run=true")
    assert (code == 2 and then in errors) if then else code == 0


TEXTS = [
    ('train.lr="0.05"', 'train.lr="0.05" is a text'),
    ('seed="3"', 'seed="3" is a text'),
    ('dry_run="true"', 'dry_run="true" is a text'),
    ("train.lr=${oc.env:A_RATE_OF_NOBODY,0.05}", "write ${oc.decode:${oc.env:…}}"),
    ("fuse.licence=[a]", "fuse.licence=[a] is a list, where a text belongs"),
    ("fuse.licence={a:1}", "fuse.licence={a:1} is several settings, where a text belongs"),
]


@pytest.mark.parametrize(("argument", "message"), TEXTS)
def test_a_value_of_the_wrong_type_is_refused_as_it_was_written(inside, argument, message):
    code, _, errors = inside(argument)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert message in errors


ENDLESS = [
    ["seed=" + "9" * 5000],
    ["name=" + "9" * 5000],
    ["-m", "seed=range(0," + "9" * 5000 + ")"],
    ["-m", "seed=1," + "9" * 5000],
    ["9" * 5000 + "=1"],
    ["model.widths=" + "[" * 2000 + "]" * 2000],
    ["train.optimizer_args=" + "{a:" * 300 + "1" + "}" * 300],
    ["name=" + "${" * 300 + "}" * 300],
    ["-m", "seed=" + "choice(" * 300 + "1" + ")" * 300],
]


@pytest.mark.parametrize("words", ENDLESS, ids=lambda words: words[-1][:20])
def test_an_argument_that_no_parser_can_read_is_refused_in_one_short_line(inside, words):
    code, _, errors = inside(*words)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert (
        "a number has more than 1,000 digits" in errors or "are nested more than 50 deep" in errors
    )
    assert len(errors) < 150


ACCEPTED = [
    ["train.lr=${oc.decode:${oc.env:A_RATE_OF_NOBODY,0.05}}"],
    ["train.optimizer=adamw", "train.lr=0.001", "++train.optimizer_args.eps=1e-9"],
    ["train.optimizer=adamw", "train.lr=0.001", "+train.optimizer_args.eps=1e-9"],
    ["++seed=4"],
]


@pytest.mark.parametrize("words", ACCEPTED, ids=" ".join)
def test_the_spellings_that_messages_advise_are_accepted(inside, words):
    code, _, errors = inside(*words, "dry_run=true")
    assert code == 0, errors


def test_the_help_says_what_choices_and_settings_mean(inside, tmp_path, capsys):
    own = tmp_path / "own" / "train" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# A recipe of mine for $5.\nepochs: 3  # not many\n")
    made = ("data=parquet", "method=dyrep", "train=mine", "--config-dir", str(tmp_path / "own"))
    with pytest.raises(SystemExit) as ended:  # by Hydra
        inside(*made, "--help")
    output = capsys.readouterr().out
    assert not ended.value.code
    assert "\n  plain                 The plain network, without branches: the baseline\n" in output
    assert "\n  grow (default)        Grow the single" in output
    assert "\n  mine                  A recipe of mine for $5\n" in output
    assert "\ntrain:   # of train=mine\n  epochs: 3  # not many\n" in output
    files = [CONF / "data" / "parquet.yaml", CONF / "method" / "dyrep.yaml", CONF / "config.yaml"]
    for key in (key for file in files for key in OmegaConf.load(file)):
        assert re.search(rf"(?m)^(  )?{key}:", output) or key in ("defaults", "hydra"), key


def test_a_setting_that_is_given_twice_is_noted(inside):
    code, out, _ = inside("seed=1", "train.lr=0.2", "seed=2", "train.lr=0.2", "dry_run=true")
    assert (code, "seed is given more than once; the last counts: seed=2" in out) == (0, True)
    assert "train.lr is given" not in out
