"""Test `--config-dir`: choices from the user's own folder, in single runs and in sweeps."""

import os

import pytest

from pipeline.planning.conf import CONF

FILES = {
    "experiment/mine.yaml": (
        "# @package _global_\ndefaults:\n  - override /train: quick\nseed: 7\nmethod:\n  name: x\n"
    ),
    "experiment/bare.yaml": "train:\n  epochs: 3\n",
    "experiment/open.yaml": "train:\n  epochs: [3\n",
    "experiment/twice.yaml": "train:\n  epochs: 3\n  epochs: 4\n",
    "experiment/typo.yaml": "# @package _global_\ntrain:\n  epochz: 3\n",
    "experiment/paper/one-by-one.yaml": "# @package _global_\nseed: 8\n",
    "experiment/my-own.yaml": "# @package _global_\nseed: 9\n",
    "experiment/other.yaml": "# @package _global_\ndefaults:\n  - override /experiment: mine\n",
    "experiment/list.yaml": "- a\n- b\n",
    "experiment/blank.yaml": "",
    "experiment/remark.yaml": "# @package _global_\n",
    "model/braces.yaml": "{}\n",
    "experiment/latin.yaml": b"# @package _global_\ngroup: caf\xe9\n",
    "experiment/wide.yaml": "# @package _global_\nseed: 1\n".encode("utf-16"),
    "experiment/beep.yaml": "# @package _global_\ngroup: a\x07\n",
    "experiment/number.yaml": "# @package _global_\ndefaults: [3]\n",
    "experiment/nothing.yaml": "# @package _global_\ndefaults: [null]\n",
    "experiment/several.yaml": "# @package _global_\ndefaults:\n- override /train: [cifar, digits]\n",
    "experiment/round.yaml": "# @package _global_\ndefaults: [around]\n",
    "experiment/around.yaml": "# @package _global_\ndefaults: [round]\n",
    "experiment/inside.yaml": "# @package _global_\ndefaults: [latin]\n",
    "experiment/lost.yaml": "# @package _global_\ndefaults: [gone]\n",
    "experiment/passwd.yaml": "# @package _global_\ndefaults: [/etc/passwd]\n",
    "experiment/relative.yaml": "# @package _global_\ndefaults:\n- train: cifar\n",
    "experiment/includes.yaml": "# @package _global_\ndefaults: [my-own, _self_]\nname: inc\n",
    "experiment/void.yaml": "# @package _global_\nnull: 2\n",
    "experiment/half.yaml": "# @package _global_\ntrain:\n  1.5: 2\n",
    "experiment/alias.yaml": "# @package _global_\ntrain:\n  epochs: *nope\n",
    "experiment/a b.yaml": "# @package _global_\nseed: 11\n",
    "experiment/é.yaml": "# @package _global_\nseed: 12\n",
    "experiment/-x.yaml": "# @package _global_\nseed: 13\n",
    "experiment/marked.yaml": "\ufeff# @package _global_\nseed: 10\n",
    "experiment/below.yaml": "# @package _global_\ndefaults:\n  - override /train: list\n",
    "train/list.yaml": "- a\n",
    "experiment/five.yaml": "5\n",
    "experiment/deep.yaml": "# @package _global_\ntrain: " + "{a: " * 3000 + "1" + "}" * 3000,
    "experiment/endless.yaml": "# @package _global_\ntrain: &t\n  augment: *t\n",
    "experiment/digits9.yaml": "# @package _global_\nseed: " + "9" * 5000,
    "experiment/bomb.yaml": "# @package _global_\nx0: &x0 [1]\n"
    + "".join(f"x{n}: &x{n} [{','.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 10)),
    "experiment/large.yaml": "# " + "x" * 2**20,
    "experiment/place.yaml": "# @package _global_\nhydra:\n  run:\n    dir: /tmp/x\n",
    "experiment/text.yaml": "# @package _global_\ndefaults: cifar\n",
    "experiment/section.yaml": "# @package _global_\ntrain: [1]\n",
    "experiment/value.yaml": "# @package _global_\ntrain: 3\n",
    "experiment/both.yaml": "# @package _global_\ndefaults:\n  - /train: digits\n",
    "experiment/nowhere.yaml": "# @package _global_\ndefaults:\n  - /trian: digits\n",
    "train/quick.yaml": (CONF / "train/digits.yaml")
    .read_text()
    .replace("name: digits", "name: quick"),
    "train/quicker.yaml": (CONF / "train/digits.yaml").read_text().replace("lr: 0.1", "lr: 0.2"),
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / "own"


@pytest.mark.parametrize("spelt", [["--config-dir", "{}"], ["--config-dir={}"], ["-cd", "{}"]])
def test_a_choice_from_the_users_folder_is_used(inside, folder, spelt):
    words = [word.format(folder) for word in spelt]
    code, out, err = inside(*words, "experiment=mine", "dry_run=true")
    assert (code, err) == (0, "")
    assert "recipe: train=quick" in out
    assert "seed 7" in out


@pytest.mark.parametrize(
    ("choice", "seed", "name"),
    [
        ("paper/one-by-one", 8, "paper-one-by-one-digits"),
        ("my-own", 9, "my-own-digits"),
        ("includes", 9, "inc"),
        ("a b", 11, "a_b-digits"),
        ("é", 12, "digits"),
        ("-x", 13, "x-digits"),
    ],
)
def test_a_choice_may_have_any_name_and_be_in_a_folder(inside, folder, choice, seed, name):
    code, out, _ = inside("--config-dir", str(folder), f"experiment={choice}", "dry_run=true")
    assert (code, f"seed {seed}" in out, out.startswith(name)) == (0, True, True)


def test_a_sweep_takes_choices_of_the_folder_and_its_dry_run_writes_nothing(inside, folder):
    code, out, _ = inside("--config-dir", str(folder), "-m", "train=glob(quick*)", "dry_run=true")
    assert (code, out.count("recipe: train=")) == (0, 2)
    assert not inside.root.exists()
    code, _, err = inside("--config-dir", str(folder), "-m", "train=quick,quick", "dry_run=true")
    assert (code, "more than once" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=mien"], "experiment=mien is not a choice; did you mean 'mine'?"),
        (["experiment=bare"], "begin its file with '# @package _global_'"),
        (["experiment=typo"], "train.epochz is not a setting; did you mean 'train.epochs'?"),
        (["train=quickest"], "train=quickest is not a choice; did you mean 'quicker'?"),
        (["train.optimizer_args.x=1"], "add it: +train.optimizer_args.x=VALUE"),
        (
            ["experiment=paper/two"],
            "experiment=paper/two is not a choice; did you mean 'paper/one-by-one'?",
        ),
        (
            ["experiment=other"],
            "chooses experiment=mine, which is ignored where experiment=other is",
        ),
        (["experiment=list"], "list.yaml is a list; write settings by name in it"),
        (["experiment=blank"], "blank.yaml is empty; write settings by name in it, KEY: VALUE"),
        (["experiment=remark"], "remark.yaml is empty; write settings by name in it"),
        (["model=braces"], "model/braces.yaml is empty; write settings by name in it"),
        (["experiment=latin"], "latin.yaml is not UTF-8 (byte 0xe9); save it as UTF-8"),
        (["experiment=wide"], "wide.yaml is not UTF-8 (byte 0xff); save it as UTF-8"),
        (["experiment=number"], "number.yaml: 3 in defaults is not a choice; write e.g. '- overr"),
        (["experiment=nothing"], "nothing.yaml: null in defaults is not a choice; write e.g."),
        (["experiment=several"], "several.yaml makes several choices for /train; make one"),
        (["experiment=round"], "around.yaml includes experiment/round, which includes it; leave"),
        (["experiment=inside"], "latin.yaml is not UTF-8 (byte 0xe9); save it as UTF-8"),
        (["experiment=lost"], "experiment/lost.yaml includes experiment/gone, which is not there"),
        (["experiment=passwd"], "experiment/passwd.yaml includes etc/passwd, which is not there"),
        (
            ["experiment=relative"],
            "no folder experiment/train with any; for train write '/train: cifar'",
        ),
        (["experiment=void"], "void.yaml cannot be read: Incompatible key type 'NoneType'"),
        (["experiment=half"], "train.1.5 is not a setting; "),
        (["experiment=alias"], "alias.yaml, line 3: found undefined alias 'nope'; correct it"),
        (["experiment=marked"], "marked.yaml begins with a byte order mark; save it without one"),
        (["experiment=beep"], "beep.yaml has the control character '\\x07' in it; remove it"),
        (["experiment=below"], "train/list.yaml is a list; write settings by name"),
        (
            ["experiment=text"],
            "text.yaml: defaults is not a list; write e.g. '- override /train: cifar",
        ),
        (["experiment=five"], "five.yaml is one value; write settings by name in it"),
        (["experiment=deep"], "deep.yaml is nested too deep, or in itself"),
        (["experiment=endless"], "endless.yaml is nested too deep, or in itself"),
        (["experiment=digits9"], "digits9.yaml cannot be read: Exceeds the limit (4300 digits)"),
        (["experiment=bomb"], "bomb.yaml has more than 10,000 values by its aliases"),
        (["experiment=large"], "large.yaml is too large for settings"),
        (["experiment=place"], "place.yaml: hydra.run would do nothing; leave it out; root=FOLD"),
        (["experiment=section"], "In 'experiment/section': a list is where a section goes"),
        (["experiment=value"], "train=3 is not a section; set what is in it, train.KEY=VALUE"),
        (["experiment=both"], "train is chosen twice; write '- override /train: CHOICE'"),
        (["experiment=nowhere"], "trian=digits is not a choice: there is no folder trian with any"),
        (["experiment=pipe"], "pipe.yaml is not a regular file"),
        (["experiment=open"], "open.yaml, line 3: expected ',' or ']'"),
        (["experiment=twice"], "twice.yaml, line 3: found duplicate key epochs"),
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
def test_a_mistake_in_the_folder_is_refused_in_one_line(inside, folder, words, message, sweep):
    os.mkfifo(folder / "experiment" / "pipe.yaml")
    code, _, err = inside("--config-dir", str(folder), *sweep, *words, "dry_run=true")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-dir", "gone"], "gone is not a folder; it holds e.g. experiment/NAME.yaml"),
        (["--config-dir="], "--config-dir '' is not a folder"),
        (["--config-dir", "empty"], "empty has no settings in it"),
        (["--config-dir", "own/experiment"], "own/experiment has no settings in it"),
        (["--config-dir", "own", "-cd", "own"], "--config-dir is given twice, own and own"),
    ],
)
def test_a_folder_that_adds_nothing_is_refused(inside, folder, monkeypatch, words, message):
    (folder.parent / "empty").mkdir()
    monkeypatch.chdir(folder.parent)
    code, _, err = inside(*words, "dry_run=true")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize("file", ["train/digits.yaml", "config.yaml", "hydra/help/pipeline.yaml"])
def test_a_file_with_the_name_of_an_existing_choice_is_refused(inside, folder, file):
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("epochs: 3\n")
    code, _, err = inside("--config-dir", str(folder), "dry_run=true")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{file}: " in err and "is there already; give it another name" in err
