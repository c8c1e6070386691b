"""Test that the import rules of pyproject.toml report each wrong import."""

import shutil
import subprocess
import sys

import pytest

from tests.launcher import PROJECT

LINT = "from importlinter.cli import lint_imports_command as c; c(['--no-cache', '--no-logo'])"
WRONG = {
    "pipeline/status.py": "import torch",
    "pipeline/run.py": "import torch",
    "pipeline/execution/processes.py": "import torch",
    "pipeline/training/loop.py": "from pipeline import launch",
    "pipeline/data/loaders/base.py": "from pipeline.stages import latency",
    "pipeline/stages/export/runtime.py": "from pipeline.records import rundir",
    "dyrep/branches.py": "import scipy",
    "slurm/job.py": "import rich",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return a copy of the packages and of the rules for their imports."""
    copy = tmp_path_factory.mktemp("sources")
    for package in ("dyrep", "pipeline", "slurm"):
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / package, copy / package, ignore=without)
    (copy / "tests").mkdir()
    shutil.copy(PROJECT / "tests" / "imports.py", copy / "tests")
    shutil.copy(PROJECT / "pyproject.toml", copy)
    return copy


def lint(sources):
    done = subprocess.run(
        [sys.executable, "-c", LINT], cwd=sources, capture_output=True, text=True,
        env={"COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_sources_keep_the_rules(sources):
    code, output = lint(sources)
    assert code == 0 and " 0 broken" in output, output


@pytest.mark.parametrize("file", WRONG)
@pytest.mark.parametrize("late", [False, True], ids=["at the top", "in a function"])
def test_a_wrong_import_is_reported(sources, file, late):
    path = sources / file
    text = path.read_text()
    more = f"\n\ndef _planted():\n    {WRONG[file]}\n" if late else f"\n\n{WRONG[file]}\n"
    path.write_text(text + more)
    code, output = lint(sources)
    path.write_text(text)
    module = file.removesuffix(".py").replace("/", ".")
    assert code == 1 and "Broken contracts" in output, output
    assert f"{module} may not import" in output or f"{module} ->" in output, output
