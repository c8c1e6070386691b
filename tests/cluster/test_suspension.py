"""Test that a suspended job continues, because its hang timeout does not count the suspension."""

import sys
import time

import pytest

from pipeline.records import stage_status
from slurm import scheduler
from slurm.entry import SUSPENDED
from slurm.job import Job, Resources
from tests.cluster.job_under_test import launched
from tests.cluster.real import call, needs_slurm, wait_for
from tests.launcher import IN_PROCESSES, PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]

CHILD = """
import sys, time
from pathlib import Path
from pipeline.contract.world import world
directory = Path(sys.argv[1])
with world(hang_timeout=2) as here:
    for step in range(1000):
        here.any(False)
        (directory / "step").write_text(str(step))
        time.sleep(0.1)
        if (directory / "enough").exists():
            break
(directory / "result.json").write_text("{}")
"""


def test_a_job_continues_after_a_suspension_longer_than_its_hang_timeout(cluster, tmp_path):
    directory = tmp_path / "work"
    directory.mkdir()
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    command = ("env", f"PYTHONPATH={PROJECT}", sys.executable, "-c", IN_PROCESSES, 1,
               sys.executable, script, directory)  # fmt: skip
    job = Job(
        name="work", command=tuple(map(str, command)), directory=directory,
        finished=directory / "result.json", resources=Resources(time_limit=5, signal_seconds=10),
    )  # fmt: skip
    submission = launched(tmp_path, 1, 1)
    submission.submit([job], {directory: ["a run"]})
    id = submission.ids[directory]
    wait_for((directory / "step").exists)
    call("scontrol", "suspend", id)
    entry = wait_for(lambda: (e := scheduler.find(id)).state in SUSPENDED and e)
    assert stage_status._in_queue(entry, {})[0] == "suspended"
    time.sleep(5)
    call("scontrol", "resume", id)
    time.sleep(3)  # a hang would have been detected by now
    (directory / "enough").touch()
    wait_for(job.finished.exists)
    assert scheduler.find(id).restarts == 0
