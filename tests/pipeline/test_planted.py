"""Test that no command imports modules from the current directory, where others may put them."""

import os
import subprocess
import sys

import pytest

from pipeline.planning import safety
from tests.launcher import PROJECT

COMMANDS = [
    "pipeline.launch", "pipeline.status", "pipeline.logs", "pipeline.cancel", "pipeline.compare",
    "pipeline.sync", "pipeline.evaluate", "pipeline.lr_finder", "pipeline.run", "pipeline.worker",
    "slurm.doctor", "slurm.dev_cluster", "slurm.requeue", "slurm.supervise",
]  # fmt: skip
MODULES = ["yaml", "hydra", "torch", "rich", "pydantic", "json", "html", "argparse", "subprocess"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_modules_of_the_current_directory(tmp_path, command):
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)"
        )
    other = "slurm" if command.startswith("pipeline") else "pipeline"
    (tmp_path / other).mkdir()
    (tmp_path / other / "__init__.py").write_text((tmp_path / "yaml.py").read_text())
    subprocess.run(
        [sys.executable, "-m", command, "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        timeout=60,
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("mode", "expected"), [(0o755, False), (0o777, True), (0o1777, True)])
def test_a_folder_of_pythonpath_that_others_may_write_to_causes_a_warning(
    tmp_path, monkeypatch, capsys, mode, expected
):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{tmp_path / 'gone'}")
    safety._warn.cache_clear()
    safety._warn_of_planted()
    errors = capsys.readouterr().err
    assert (f"everybody may write to {folder}, from which Python imports" in errors) is expected
