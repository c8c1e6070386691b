"""Test the commands: their help, what they import, and their errors."""

import argparse
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec

import pytest

from pipeline import __main__ as dispatcher
from pipeline import cancel
from pipeline.records import named
from tests.launcher import PROJECT
from tests.runs import make_run

NAMES = ["launch", "run", "status", "logs", "cancel", "compare", "sync", "evaluate", "lr_finder"]


@pytest.mark.parametrize("module", [*(f"pipeline.{name}" for name in NAMES), "slurm.dev_cluster"])
def test_help_imports_no_heavy_library(module):
    code = (
        f"import runpy, sys; sys.argv = ['{module}', '--help']\n"
        f"try: runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'nvidia', 'wandb', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


def test_missing_packages_are_reported_in_one_line():
    done = subprocess.run(  # -S leaves out site-packages
        [sys.executable, "-S", "-m", "pipeline.status"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "rich, yaml; of a checkout, activate" in done.stderr and done.stderr.count("\n") == 1


def test_python_without_docstrings_is_refused(launch):
    done = launch("stage=prep", environment={"PYTHONOPTIMIZE": "2"})
    assert done.returncode == 2
    assert "`unset PYTHONOPTIMIZE`" in done.stderr and done.stderr.count("\n") == 1
    assert not launch.root.exists()


def test_the_composed_configuration_is_printed(launch):
    done = launch("--cfg", "job", "train.epochs=7")
    assert done.returncode == 0
    assert "epochs: 7" in done.stdout
    assert not launch.root.exists()


def test_run_without_a_stage_names_the_missing_file(tmp_path):
    command = [sys.executable, "-m", "pipeline.run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no stage.yaml" in done.stderr


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "many", ""])
def test_a_count_is_one_or_more(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of 1 or more"):
        named.count(text)
    assert named.count("12") == 12


@pytest.mark.parametrize("text", ["-1", "2.5", "many", ""])
def test_a_rank_is_zero_or_more(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of 0 or more"):
        named.rank(text)
    assert named.rank("0") == 0


def dyrep(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["dyrep", *words])
    return dispatcher.main()


@pytest.mark.parametrize("name", dispatcher.COMMANDS)
def test_every_command_is_listed_in_the_help_of_dyrep(monkeypatch, capsys, name):
    module, what = dispatcher.COMMANDS[name]
    assert callable(import_module(module).main)
    assert dyrep(monkeypatch, "--help") == 0
    assert re.search(rf"(?m)^  {name} +{re.escape(what)}$", capsys.readouterr().out)


def test_a_command_gets_its_arguments_and_its_exit_code_is_passed_on(monkeypatch, capsys, tmp_path):
    assert dyrep(monkeypatch, "status", "--root", str(tmp_path)) == 2
    assert f"there are no runs in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "cure"),
    [
        ("root=/x", "write --root /x"),
        ("name=demo", "write demo alone"),
        ("seed=1", "settings are for pipeline.launch"),
    ],
)
def test_a_setting_in_place_of_a_run_is_refused(monkeypatch, capsys, word, cure):
    assert dyrep(monkeypatch, "status", word) == 2
    message = f"error: '{word}' is a setting, not the name of a run; {cure}\n"
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.parametrize("name", ["status", "compare", "evaluate", "doctor", "dev-cluster"])
def test_help_shows_what_was_typed(monkeypatch, capsys, name):
    with pytest.raises(SystemExit) as end:
        dyrep(monkeypatch, name, "--help")
    assert not end.value.code
    assert capsys.readouterr().out.startswith(f"usage: dyrep {name} [-h]")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("stauts", "status"), ("devcluster", "dev-cluster"), ("--verson", "--version")],
)
def test_an_unknown_command_is_refused_with_the_nearest(monkeypatch, capsys, word, meant):
    assert dyrep(monkeypatch, word) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: dyrep has no command '{word}'; did you mean '{meant}'?\n"
    assert not printed.out


def test_all_versions_agree(monkeypatch, capsys):
    import dyrep as library

    assert dyrep(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"dyrep {library.__version__}\n"
    assert f"\n## {library.__version__}" in (PROJECT / "CHANGELOG.md").read_text()


TEXTS = [
    path.read_text()
    for package in ("dyrep", "pipeline", "slurm", "conf")
    for path in (PROJECT / package).rglob("*")
    if path.suffix in (".py", ".yaml", ".html")
]


def test_packages_that_messages_name_are_requirements_of_the_project():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    known = {re.match(r"[\w.-]+", text)[0] for text in extras}
    known |= {"hydra-optuna-sweeper", "torch-tensorrt"}  # for rarely used features
    named = {
        word
        for text in TEXTS
        for words in re.findall(r"pip install ([a-z][\w -]*\w)", text)
        for word in words.split(", ")[0].split()
    }
    assert {"onnx", "wandb"} <= named <= known


def test_modules_that_messages_name_are_commands():
    modules = {name for text in TEXTS for name in re.findall(r"python -m ([\w.]*\w)", text)}
    modules -= {"pipeline.NAME", "MODULE"}
    assert len(modules) > 10
    for module in modules:
        there = find_spec(module)
        if there.submodule_search_locations:
            there = find_spec(f"{module}.__main__")
        assert '__name__ == "__main__"' in there.loader.get_source(there.name), module


def test_a_run_of_another_user_is_left_alone(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path, "begun", finished=("prep",))
    monkeypatch.setattr("os.geteuid", lambda: run.stat().st_uid + 1)
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    assert cancel.main([f"--root={tmp_path}", "begun"]) == 2
    assert re.search("begun is of user .*, who alone can cancel it", capsys.readouterr().err)
    assert not (run / "CANCELLED").exists()


def test_a_finished_run_cannot_be_cancelled(tmp_path, capsys):
    done, begun = make_run(tmp_path, "done"), make_run(tmp_path, "begun", finished=("prep",))
    assert cancel.main([f"--root={tmp_path}", "done"]) == 0
    assert capsys.readouterr().out == "nothing was stopped\n"
    assert not list(done.glob("**/CANCELLED"))
    assert cancel.main([f"--root={tmp_path}", "done", "begun"]) == 0
    assert (begun / "CANCELLED").exists() and not (done / "CANCELLED").exists()
