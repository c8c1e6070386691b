"""Test that the doctor examines a cluster, rehearses an interruption, and reports faults."""

import os
import subprocess
import sys

import pytest

from slurm import scheduler
from tests.cluster.real import call, needs_slurm, wait_for
from tests.launcher import PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]


def doctor(*arguments, environment=None):
    return subprocess.run(
        [sys.executable, "-m", "slurm.doctor", *arguments],
        cwd=PROJECT, env=os.environ | (environment or {}), capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip


def test_a_good_cluster_passes_and_the_doctor_leaves_nothing(cluster, tmp_path):
    done = doctor("--dir", str(tmp_path), "--gpus", "1")
    output = done.stdout
    assert "requeued itself" in output, output + done.stderr
    for words in ("preempted jobs are requeued", "6 s later", "accounting answers",
                  "up to 1-00:00:00", "seen complete", "torch on the node: 2"):  # fmt: skip
        assert words in output
    # the dev cluster's GPUs are device files without a GPU, and the doctor reports that
    assert "BAD  GPUs on the node: none" in output
    assert "BAD  torch sees 0 of 1 GPUs asked for" in output
    assert done.returncode == 1
    assert not list(tmp_path.iterdir())
    wait_for(lambda: not [entry for entry in scheduler.user_jobs().values() if entry.active])


def test_a_job_that_does_not_start_is_reported_with_its_reason(cluster, tmp_path, monkeypatch):
    from slurm import doctor as examined
    from slurm.job import Resources

    monkeypatch.setattr(examined, "PATIENCE", 5)
    block = call("sbatch", "--parsable", "-N4", "--exclusive", "-o/dev/null", "--wrap=sleep 60")
    found = list(examined.examine(Resources(time_limit=10, signal_seconds=30), tmp_path))
    call("scancel", block)
    assert found[-1].well is False
    assert "the job is pending" in found[-1].cure


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--partition", "nowhere"], {}, "no partition nowhere; choose one of low, high"),
        (["--dir", "/dev/null/x"], {}, "'/dev/null/x'; choose another --dir"),
        (
            [],
            {"SLURM_CONF": "/nowhere/slurm.conf"},
            "SLURM_CONF=/nowhere/slurm.conf does not exist",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(cluster, tmp_path, arguments, environment, words):
    done = doctor("--dir", str(tmp_path / "new"), *arguments, environment=environment)
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
