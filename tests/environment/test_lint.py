"""Test that style, types, imports and the length of files follow the rules of the project."""

import subprocess
import sys

import pytest

from tests.launcher import PROJECT

TOOLS = {
    "style": ["ruff", "check"],
    "format": ["ruff", "format", "--check"],
    "types": ["mypy"],
    "imports": ["importlinter.cli"],
}


@pytest.mark.long  # `make check` runs the same linters first
@pytest.mark.parametrize("what", TOOLS)
def test_the_linters_find_nothing(what):
    module, *arguments = TOOLS[what]
    call = [sys.executable, "-m", module, *arguments]
    if what == "imports":
        call = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(call, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_longer_than_300_lines():
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=PROJECT, capture_output=True, text=True
    )
    files = [PROJECT / name for name in listed.stdout.split()]
    assert len(files) > 400
    assert not [file for file in files if len(file.read_text().splitlines()) > 300]
