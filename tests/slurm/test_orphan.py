"""What a supervisor makes of a batch script that is gone."""

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
    """Return a way to set what SLURM says of the job, question after question."""

    def answers(*states):
        told = iter(states)
        monkeypatch.setattr(orphan.scheduler, "find", lambda id: next(told))
        monkeypatch.setattr(orphan.time, "sleep", lambda seconds: None)

    return answers


RUNNING, CANCELLED, NONE = entry(), entry(state="COMPLETING", signal=15), None
KILLED = entry(state="COMPLETING", signal=9)


def test_of_a_script_that_lives_slurm_is_not_asked(script, says):
    says()
    seen = orphan.Script(f"1795803504-{script.pid}", "7")
    assert not (seen.over() or seen.ended or seen.killed())


@pytest.mark.parametrize(
    ("answers", "killed"),
    [([KILLED], True), ([RUNNING, RUNNING, KILLED], True), ([CANCELLED], False), ([NONE], False)],
)
def test_a_script_that_was_killed_is_told_from_one_that_slurm_ended(answers, killed, script, says):
    seen = orphan.Script(f"1795803504-{script.pid}", "7")
    script.kill()
    script.wait()
    says(*answers)
    assert seen.ended
    assert seen.killed() is killed


@pytest.mark.parametrize("mark", ["", "1795803504-99999999"])  # above any pid
@pytest.mark.parametrize(
    ("answer", "over"),
    [(RUNNING, False), (entry(state="SUSPENDED"), False), (CANCELLED, True), (KILLED, True),
     (NONE, True)],
)  # fmt: skip
def test_without_a_script_in_sight_slurm_says_whether_to_begin(mark, answer, over, says):
    says(answer)
    seen = orphan.Script(mark, "7")
    assert seen.over() is over
    assert not seen.ended  # in a container it is never in sight
