"""Test that a launch calls the user's code for images, prints what it found, or refuses it."""

import json
import sys

import pytest
import torch

from pipeline.planning import outline
from pipeline.planning.outline import __main__ as side


@pytest.fixture
def own(tmp_path, monkeypatch, inside):
    """Return a function for dry runs, in which the process with torch is a function call, too."""

    def ask(arguments, request=""):
        monkeypatch.setattr("sys.argv", ["outline", *arguments])
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "__cache__"))
        with torch.no_grad():
            return json.loads(json.dumps(side._reply(json.loads(request))))

    monkeypatch.setattr(outline, "ask", ask)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(side.os, "chdir", lambda _: None)
    outline._cached_answer.cache_clear()
    yield lambda *words: inside(*words, "train.batch_size=8", "data.image_size=16", "dry_run=true")
    outline._cached_answer.cache_clear()
    sys.modules.pop("pictures", None)


PICTURES = """
def pictures(count=40):
    for n in range(count):
        yield bytes([n]), n % 2
pictures.classes = ["even", "odd"]
class Few(list):
    def __init__(self): super().__init__([(b"x", 0)] * 8)
class Negative(Few):
    def __len__(self): return -1
class Odd(Few):
    @property
    def classes(self): raise RuntimeError("mine")
def stop(): raise KeyboardInterrupt
class Cancelled(BaseException): pass
def cancelled(): raise Cancelled("mine")
"""


def test_a_dry_run_shows_what_will_be_trained_and_writes_nothing(own, tmp_path, monkeypatch):
    (tmp_path / "pictures.py").write_text(PICTURES)
    monkeypatch.chdir(tmp_path)
    code, out, err = own(
        "model=custom", "model.target=mine:net", "model.args={width: 8}",
        "data=custom", "data.target=pictures:pictures",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "custom pictures:pictures · custom mine:net" in out
    assert "for 2 classes, 2 convolutions can grow" in out
    assert sorted(path.name for path in tmp_path.glob("[!_]*")) == ["mine.py", "pictures.py"]


def test_code_that_cannot_be_tried_is_noted(own, tmp_path, monkeypatch):
    (tmp_path / "pictures.py").write_text(PICTURES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outline, "ask", lambda *_: outline.Unknown(why="no torch"))
    code, out, _ = own("data=custom", "data.target=pictures:pictures")
    assert (code, "note: data.target=pictures:pictures was not tried: no torch" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=custom"], "model.target is missing; give model.target=package.module:function"),
        (["model=custom", "model.target=mine"], "not of the form package.module:function"),
        (["model=custom", "model.target=gone:net"], "there is no module gone in "),
        (["model=custom", "model.target=mine:nett"], "mine has no nett; did you mean 'net'?"),
        (["model=custom", "model.target=mine:ten", "data=emnist", "data.split=letters"],
         "data.root is missing"),
        (["model=custom", "model.target=mine:net", "model.args={widht: 3}"],
         "called with (num_classes=10, widht=3), raised TypeError: net() got an unexpected"),
        (["model=custom", "model.target=mine:net", "model.code=x"], "'x' is not a copy of code"),
        (["model=custom", "model.target=mine:net", f"model.code={'0' * 12}"],
         f"model.code={'0' * 12}: there is no copy of it below root"),
        (["model.target=mine:net"], "model.target is only a setting of model=custom"),
        (["data=custom"], "data.target is missing"),
        (["data=custom", "data.target=pictures:gone"], "pictures has no gone"),
        (["data=custom", "data.target=pictures:Negative"],
         "pictures:Negative raised ValueError: __len__() should return >= 0"),
        (["data=custom", "data.target=pictures:Odd"], "raised RuntimeError: mine (pictures.py"),
        (["data=custom", "data.target=pictures:stop"], "raised KeyboardInterrupt: no reason given"),
        (["data=custom", "data.target=pictures:cancelled"], "raised Cancelled: mine (pictures.py"),
        (["model=custom", "model.target=mine:Props", "data.channels=3"], "mine:Props raised KeyError: 'mine'"),
        (["data=custom", "data.target=pictures:Few"], "larger than the 7 training images"),
        (["data=custom", "data.target=pictures:pictures", "data.val_fraction=null"],
         "returns one set of images"),
    ],
)  # fmt: skip
def test_a_wrong_target_is_refused_at_launch(own, tmp_path, monkeypatch, words, message):
    (tmp_path / "pictures.py").write_text(PICTURES)
    monkeypatch.chdir(tmp_path)
    code, _, err = own(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
