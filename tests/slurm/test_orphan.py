"""Test how a supervisor finds out that its batch script was killed."""

import subprocess

import pytest

from slurm import orphan
from tests.slurm.test_requeue import entry


@pytest.fixture
def script():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def says(monkeypatch):
    """Return a function that sets SLURM's answers about the job, one per query."""

    def answers(*states):
        entries = iter(states)
        monkeypatch.setattr(orphan.scheduler, "find", lambda id: next(entries))
        monkeypatch.setattr(orphan.time, "sleep", lambda seconds: None)

    return answers


RUNNING, CANCELLED, NONE = entry(), entry(state="COMPLETING", signal=15), None
KILLED = entry(state="COMPLETING", signal=9)


def test_slurm_is_not_asked_about_a_script_that_is_running(script, says):
    says()
    seen = orphan.Script(f"1795803504-{script.pid}", "7")
    assert not (seen.over() or seen.ended or seen.killed())


@pytest.mark.parametrize(
    ("answers", "killed"),
    [([KILLED], True), ([RUNNING, RUNNING, KILLED], True), ([CANCELLED], False), ([NONE], False)],
)
def test_a_killed_script_is_distinguished_from_one_that_slurm_ended(answers, killed, script, says):
    seen = orphan.Script(f"1795803504-{script.pid}", "7")
    script.kill()
    script.wait()
    says(*answers)
    assert seen.ended
    assert seen.killed() is killed


@pytest.mark.parametrize("mark", ["", "1795803504-99999999"])  # no process has this id
@pytest.mark.parametrize(
    ("answer", "over"),
    [(RUNNING, False), (entry(state="SUSPENDED"), False), (CANCELLED, True), (KILLED, True),
     (NONE, True)],
)  # fmt: skip
def test_if_the_script_is_not_found_slurm_says_whether_the_job_is_over(mark, answer, over, says):
    says(answer)
    seen = orphan.Script(mark, "7")
    assert seen.over() is over
    assert not seen.ended  # in a container, the script is never found
