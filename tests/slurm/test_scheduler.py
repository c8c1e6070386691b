"""Test that durations and error messages of SLURM are parsed."""

import subprocess

import pytest

from slurm import scheduler
from slurm.notation import minutes
from slurm.scheduler import Unreachable


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("90", 90), ("0", 0), ("5:00", 5), ("0:30", 0.5), ("1:30:00", 90), ("100:00:00", 6000),
        ("1-00:00:00", 1440), ("2-12", 3600), ("2-12:30", 3630), ("0-00:00:01", 1 / 60),
        ("UNLIMITED", None), ("Partition_Limit", None), ("NOT_SET", None), ("INVALID", None),
    ],
)  # fmt: skip
def test_a_duration_is_read_as_slurm_writes_it(text, found):
    assert minutes(text) == (None if found is None else pytest.approx(found))


@pytest.mark.parametrize("text", ["", "x", "5m", "-5", "1:2:3:4", "1.5", "1-", " 5", "5 min"])
def test_an_invalid_duration_is_refused_with_the_valid_formats(text):
    with pytest.raises(ValueError, match=r"is not a duration; use minutes, HH:MM:SS or D-HH:MM:SS"):
        minutes(text)


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ("sbatch: error: Invalid partition\n", "Invalid partition"),
        ("sbatch: error: one\nsbatch: error: two\n", "one; two"),
        ("sbatch: error: one\nsbatch: error: one\n", "one"),
        ("\n", "no reason given"),
    ],
)
def test_an_error_message_of_slurm_becomes_one_line(stderr, line):
    assert scheduler.error_line(stderr) == line


@pytest.mark.parametrize(
    ("words", "how"),
    [  # what scontrol requeue prints while slurmctld restarts, or if slurmctld refuses
        ("Unable to contact slurm controller (connect failure)", Unreachable),
        ("Unexpected message received for job 13", Unreachable),
        ("Message receive failure for job 13", Unreachable),
        ("Zero Bytes were transmitted or received", Unreachable),
        ("Slurm backup controller in standby mode", Unreachable),
        ("Requeue is disabled for job 13", scheduler.Refused),
        ("Job is pending execution for job 13", scheduler.Refused),
    ],
)
def test_a_refusal_is_distinguished_from_a_missing_answer(words, how, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", f"slurm_requeue error: {words}\n")
    monkeypatch.setattr(scheduler.shutil, "which", lambda name: name)
    monkeypatch.setattr(scheduler.subprocess, "run", lambda *_, **__: done)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    with pytest.raises(how, match=words.partition("(")[0]):
        scheduler.requeue("13")
