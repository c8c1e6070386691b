"""Test that the Makefile builds the environment once and refuses an unsuitable Python."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time

import pytest

from tests.launcher import PROJECT

pytestmark = pytest.mark.long


@pytest.fixture
def checkout(tmp_path):
    """Return a folder with the Makefile, the project's metadata and an empty lock."""
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "requirements.lock").write_text("# nothing\n")
    return tmp_path


def make(checkout, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=checkout, capture_output=True, text=True, env=environment
    )


def test_an_unsuitable_python_is_refused_in_one_line(checkout):
    old = checkout / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(checkout, "demo", f"PYTHON={old}")
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert "is not a Python 3.11 to 3.13" in first
    assert "make demo PYTHON=" in first
    assert all(line.startswith("make:") for line in rest)  # make itself prints "Error 2"
    assert not (checkout / ".venv").exists()


def test_the_environment_is_built_once(checkout):
    assert "building" in make(checkout, ".venv/.ready").stdout
    stamp = (checkout / ".venv" / ".ready").stat().st_mtime_ns
    again = make(checkout, ".venv/.ready")
    assert "building" not in again.stdout
    assert (checkout / ".venv" / ".ready").stat().st_mtime_ns == stamp


def test_an_interrupted_install_starts_from_the_beginning(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "half").touch()
    assert make(checkout, ".venv/.ready").returncode == 0
    assert not (checkout / ".venv" / "half").exists()


def test_a_changed_lock_is_installed(checkout):
    make(checkout, ".venv/.ready")
    (checkout / "requirements.lock").write_text("# other\n")
    os.utime(checkout / "requirements.lock", (time.time() + 5,) * 2)
    assert "building" in make(checkout, ".venv/.ready").stdout


def test_the_checkout_is_installed_for_every_directory(checkout, tmp_path_factory):
    for name in ("dyrep", "pipeline", "slurm", "conf", "README.md", "LICENSE"):
        (checkout / name).symlink_to(PROJECT / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (packages,) = (checkout / ".venv").glob("lib/*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib"))
    (checkout / ".venv" / ".ready").touch()
    done = make(checkout, ".venv/.installed")
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "slurm").mkdir()  # a folder of the user's, not the package
    for command in ("dyrep", "python -m pipeline.launch"):
        words = [*command.split(), *(["launch"] if command == "dyrep" else []), "--cfg", "job"]
        words[0] = checkout / ".venv" / "bin" / words[0]
        shown = subprocess.run(words, cwd=elsewhere, capture_output=True, text=True)
        assert shown.returncode == 0 and "epochs:" in shown.stdout, shown.stderr


def test_help_lists_the_tasks(checkout):
    done = make(checkout, "help")
    assert "make demo" in done.stdout
    assert not (checkout / ".venv").exists()
