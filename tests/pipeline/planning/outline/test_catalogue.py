"""Test `--models`: it lists the networks of timm and torchvision that match a pattern."""

import fnmatch
import json

import pytest

from pipeline import launch
from pipeline.planning import outline

NAMES = {"timm": ["resnet18", "vit_tiny"], "torchvision": ["resnet18", "vgg16"]}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["resnet*"], 0, "2 models: 1 of timm, 1 of torchvision"),
        ([], 0, "4 models"),
        (["reznet18"], 2, "did you mean 'resnet18'"),
        (["a", "b"], 2, "one pattern, in quotes"),
    ],
)
def test_models_are_listed(monkeypatch, capsys, arguments, code, message):
    monkeypatch.setattr(outline, "ask", lambda *_: NAMES)
    monkeypatch.setattr("sys.argv", ["launch", "--models", *arguments])
    assert launch.main() == code
    out, err = capsys.readouterr()
    assert message in out + err
    shown = fnmatch.filter(json.dumps(out).split("\\n"), "*model.name=*")
    assert len(shown) == (0 if code else 4 if not arguments else 2)
