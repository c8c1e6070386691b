"""Test `custom`: the files of the user's code, the copy that a run keeps, and errors of that code."""

import sys
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config.model import Custom
from pipeline.custom import call, code, files
from pipeline.display.errors import UserError
from pipeline.records import rundir

NETS = {
    "nets/__init__.py": "from . import registry\n",
    "nets/registry.py": "KNOWN = {}\n",
    "nets/small.py": "from ..nets.blocks import conv\nimport helpers.deep\ndef build(): return conv\n",
    "nets/blocks.py": "def conv():\n    import late\n",
    "nets/other.py": "",
    "helpers/deep.py": "import random, timm, dyrep",
    "late.py": "",
    "random.py": "",
    "unused.py": "",
}


def write(folder, texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to a new folder, and forget the modules that the test imported from it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def target(name="mine:build", found=None, **args):
    return Custom(name="custom", family="custom", target=name, args=args or None, code=found)


def config(root, section):
    return Config.model_construct(root=str(root), name="x", model=section)


def test_the_files_are_those_that_the_module_imports(here):
    found = files.find("model.target", "nets.small:build") if write(here, NETS) else {}
    assert sorted(found) == [
        "helpers/deep.py", "late.py", "nets/__init__.py", "nets/blocks.py", "nets/registry.py",
        "nets/small.py",
    ]  # fmt: skip


def test_modules_are_found_here_before_pythonpath_and_installed_ones_are_not_copied(
    here, tmp_path, monkeypatch
):
    write(tmp_path / "elsewhere", {"mine.py": "import other", "other.py": ""})
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert files.find("k", "mine:x")["mine.py"] == tmp_path / "elsewhere" / "mine.py"
    write(here, {"mine.py": ""})
    assert files.find("k", "mine:x") == {"mine.py": here / "mine.py"}
    assert files.find("k", "torchvision.models:resnet18") == {}
    assert files.release("torchvision.models:resnet18").startswith("torchvision==")
    (
        tmp_path / "elsewhere" / "other-1.0.dist-info"
    ).mkdir()  # marks the folder as one of installed packages
    assert files.find("k", "other:x") == {}


@pytest.mark.parametrize(
    ("texts", "name", "message"),
    [
        ({}, "mine:build", "there is no module mine in "),
        ({"mine.py": ""}, "mine.py:build", "named without its ending: mine"),
        ({"mine.py": ""}, "mine.part:build", "there is no module mine.part in "),
        ({"parts/a.py": ""}, "parts.b:build", "there is no module parts.b in "),
        ({"mine.py": "x = 1\ndef build(:\n"}, "mine:build", "mine.py line 2 is not Python: "),
        ({"mine.py": "import b", "b.py": "x ="}, "mine:build", "b.py line 1 is not Python: "),
        ({"mine.py": "\0"}, "mine:build", "mine.py is not Python: "),
        ({"random.py": ""}, "random:build", "random is a module of Python itself"),
        ({"slurm/mine.py": ""}, "slurm.mine:build", "slurm is a module of this project"),
    ],
)
def test_a_target_without_a_valid_module_is_refused(here, monkeypatch, texts, name, message):
    write(here, texts)
    monkeypatch.syspath_prepend(here)  # `python -m` puts the folder on the path
    with pytest.raises(UserError) as refused:
        files.find("model.target", name)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["mine", "mine.build", "a/b.py:build", ":build", "mine:", "mine:a b"]
)
def test_a_target_is_a_module_and_a_name(name):
    with pytest.raises(ValueError, match=r"is not of the form package\.module:function"):
        target(name)


def settled(section):
    values = {"model": section.model_dump(), "data": {}}
    return Custom.model_validate(code.pin(values)["model"])


def test_a_run_keeps_the_code_that_it_was_started_with(here, tmp_path, monkeypatch):
    write(
        here, {"mine.py": "import part\ndef build(): return part.NUMBER\n", "part.py": "NUMBER = 1"}
    )
    first = settled(target())
    run = config(tmp_path, first)
    code.keep(run)
    origin = code.origins(run, {})
    assert (origin["model"]["file"], origin["model"]["revision"]) == (str(here / "mine.py"), None)
    assert settled(target()) == first
    assert list(code.notes(run)) == []
    write(here, {"part.py": "NUMBER = 2"})
    assert settled(target()).code != first.code
    (note,) = code.notes(run)
    assert "the code of mine:build has changed since run x began" in note
    code.check(run)  # passes, because the run has a copy
    assert code.origins(run, origin) == origin
    (here / "mine.py").unlink()
    assert list(code.notes(run)) == []
    code.enable(first, tmp_path)
    assert call.call("model.target", first) == 1


def test_a_run_without_its_copy_needs_unchanged_code(here, tmp_path):
    write(here, {"mine.py": "X = 1"})
    run = config(tmp_path, settled(target()))
    code.check(run)
    write(here, {"mine.py": "X = 2"})
    for refuse in (code.check, code.keep):
        with pytest.raises(UserError, match="mine:build has changed"):
            refuse(run)
    with pytest.raises(UserError, match="the copy of mine:build, is gone; launch again"):
        code.enable(run.model, tmp_path)


def test_a_changed_copy_is_not_executed(here, tmp_path):
    write(here, {"mine.py": "X = 1"})
    run = config(tmp_path, settled(target()))
    code.keep(run)
    (rundir.code_dir(tmp_path, run.model.code) / "mine.py").write_text("X = 2")
    for refuse in (code.check, lambda run: code.enable(run.model, tmp_path)):
        with pytest.raises(UserError, match="holds other code than its name says"):
            refuse(run)


def test_another_release_of_an_installed_package_is_noted(tmp_path):
    run = config(tmp_path, target("torchvision.models:resnet18", "torchvision==0.1"))
    code.check(run)
    assert next(code.notes(run)).startswith(
        "torchvision.models:resnet18 was of torchvision==0.1 when run x began, now torchvision=="
    )


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        ("import nowhere_at_all", {}, "cannot be imported: raised ModuleNotFoundError: No module"),
        ("\nraise SystemExit(3)", {}, "cannot be imported: raised SystemExit: 3 (mine.py line 2)"),
        ("biuld = print", {}, "mine has no build; did you mean 'biuld'?"),
        ("x = 1", {}, "mine has no build; there is no function or class in it"),
        ("build = 3", {}, "mine:build is of type int, no function or class"),
        ("def build(): pass", {"width": 3}, "called with (width=3), raised TypeError: build() got"),
        ("def build(width): pass", {}, "called with (), raised TypeError: build() missing 1"),
        ("def build():\n    {}['k']", {}, "raised KeyError: 'k' (mine.py line 2)"),
        ("def build():\n    exit()", {}, "raised SystemExit: "),
    ],
)
def test_an_error_of_the_users_code_is_reported_in_one_line(here, text, args, message):
    write(here, {"mine.py": text})
    sys.path.insert(0, str(here))
    with pytest.raises(UserError) as refused:
        call.call("model.target", target(**args), offered=1)
    assert str(refused.value).startswith("model.target=mine:build")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_offered_argument_is_passed_if_the_function_accepts_it(here):
    texts = {"mine.py": "def a(n): return n\ndef b(**k): return k['n']\ndef c(): return 0\n"}
    write(here, texts)
    sys.path.insert(0, str(here))
    assert [call.call("k", target(f"mine:{name}"), n=5) for name in "abc"] == [5, 5, 0]
    assert call.call("k", target("mine:a", None, n=7), n=5) == 7


def test_lent_code_exists_only_while_it_is_used(here, tmp_path):
    write(here, {"mine.py": "X = 1"})
    section = settled(target())
    with code.lent({"model": section.model_dump()}, tmp_path) as place:
        assert [path.name for path in Path(place).iterdir()] == ["mine.py"]
    assert not Path(place).exists()
    assert not (tmp_path / "code").exists()
    with code.lent({"train": {}}, tmp_path) as nothing:
        assert nothing == ""
