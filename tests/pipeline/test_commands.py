"""The commands answer fast, help, and do not import what they do not use."""

import argparse
import subprocess
import sys

import pytest

from pipeline import commands
from tests.launcher import PROJECT

NAMES = ["launch", "run", "status", "logs", "cancel", "compare", "sync", "evaluate"]


@pytest.mark.parametrize("module", [*(f"pipeline.{name}" for name in NAMES), "slurm.dev_cluster"])
def test_help_helps_at_once_and_without_torch(module):
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


def test_a_forgotten_environment_is_told_in_one_line():
    done = subprocess.run(  # -S: without site-packages
        [sys.executable, "-S", "-m", "pipeline.status"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "rich, yaml; activate the environment" in done.stderr and done.stderr.count("\n") == 1


def test_the_composed_configuration_is_printed(launch):
    done = launch("--cfg", "job", "train.epochs=7")
    assert done.returncode == 0
    assert "epochs: 7" in done.stdout
    assert not launch.root.exists()


def test_run_without_a_stage_says_what_it_wants(tmp_path):
    command = [sys.executable, "-m", "pipeline.run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no stage.yaml" in done.stderr


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "many", ""])
def test_a_count_is_one_or_more(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no whole number from 1 on"):
        commands.count(text)
    assert commands.count("12") == 12
