"""SLURM's commands are asked in a clean environment; what they do not tell is not concluded."""

import os

import pytest

from slurm import scheduler, shell
from slurm.scheduler import Unreachable


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        ("", None),
        ("PREEMPTED\n", "PREEMPTED"),
        ("CANCELLED by 1000\n", "CANCELLED"),
        ("RUNNING\n", Unreachable),  # accounting lags
        ("CANCELLED+\n", Unreachable),
    ],
)
def test_how_a_job_ended_is_known_or_not(monkeypatch, answer, how):
    monkeypatch.setattr(scheduler, "find", lambda job: None)
    monkeypatch.setattr(scheduler, "call", lambda *command: answer)
    if how is Unreachable:
        with pytest.raises(Unreachable, match="not in the queue"):
            scheduler.end("7")
    else:
        assert scheduler.end("7") == how


@pytest.mark.parametrize(
    "command", ["squeue", "sacct", "sacctmgr", "sinfo", "scontrol", "sbatch", "scancel"]
)
def test_no_command_sees_options_in_the_shell(tmp_path, monkeypatch, command):
    stand_in = tmp_path / command
    stand_in.write_text("#!/bin/sh\nenv\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(stand_in))
    for option in ("PARTITION", "FORMAT", "STATE", "ALL", "CLUSTERS"):
        monkeypatch.setenv(f"{command.upper()}_{option}", "high")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    seen = {line.partition("=")[0] for line in scheduler.call(command).splitlines()}
    assert {name for name in seen if shell.OPTION.match(name)} == {"SLURM_CONF"}
    assert "HOME" in seen
