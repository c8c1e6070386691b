"""Settings of one's own: a folder beside `conf/`, in single runs and in sweeps."""

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
        path.write_text(text)
    return tmp_path / "own"


@pytest.mark.parametrize("spelt", [["--config-dir", "{}"], ["--config-dir={}"], ["-cd", "{}"]])
def test_a_choice_of_a_folder_of_ones_own_is_taken(inside, folder, spelt):
    words = [word.format(folder) for word in spelt]
    code, out, err = inside(*words, "experiment=mine", "dry_run=true")
    assert (code, err) == (0, "")
    assert "recipe: train=quick" in out
    assert "seed 7" in out


def test_a_sweep_takes_them_too_and_a_dry_run_leaves_nothing(inside, folder):
    code, out, _ = inside("--config-dir", str(folder), "-m", "train=glob(quick*)", "dry_run=true")
    assert (code, out.count("recipe: train=")) == (0, 2)
    assert not inside.root.exists()
    code, _, err = inside("--config-dir", str(folder), "-m", "train=quick,quick", "dry_run=true")
    assert (code, "more than once" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=mien"], "experiment=mien is not a choice; did you mean 'mine'?"),
        (["experiment=bare"], "begin its file with '# @package _global_'"),
        (["experiment=typo"], "train.epochz is not a setting; did you mean 'train.epochs'?"),
        (["train=quickest"], "train=quickest is not a choice; did you mean 'quicker'?"),
        (["train.optimizer_args.x=1"], "add it: +train.optimizer_args.x=VALUE"),
        (["experiment=open"], "line 3: expected ',' or ']'"),
        (["experiment=twice"], "line 3: found duplicate key epochs"),
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
def test_what_is_wrong_in_it_is_one_line(inside, folder, words, said, sweep):
    code, _, err = inside("--config-dir", str(folder), *sweep, *words, "dry_run=true")
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_a_folder_that_is_none_is_refused(inside, tmp_path):
    code, _, err = inside("--config-dir", str(tmp_path / "gone"), "experiment=mine")
    assert (code, f"--config-dir {tmp_path}/gone is no folder" in err) == (2, True)


def test_a_file_with_the_name_of_a_choice_is_not_passed_over_in_silence(inside, folder):
    (folder / "train" / "digits.yaml").write_text("epochs: 3\n")
    code, _, err = inside("--config-dir", str(folder), "train=digits", "dry_run=true")
    assert (code, err.count("\n")) == (2, 1)
    assert "train=digits is a choice already; give it another name" in err
