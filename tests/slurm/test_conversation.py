"""Test how SLURM's commands are called: in a clean environment, for JSON or for text.

If SLURM does not answer, or the answer cannot be read, the state of a job is unknown.
"""

import os

import pytest

from slurm import scheduler, shell
from slurm.scheduler import Refused, Unreachable
from tests.slurm.test_answers import answer, job, line, several


@pytest.mark.parametrize(
    "command", ["squeue", "sacct", "sacctmgr", "sinfo", "scontrol", "sbatch", "scancel"]
)
def test_no_command_gets_options_from_the_users_shell(tmp_path, monkeypatch, command):
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


def ended(*words):
    return answer(*({"state": {"current": [word], "reason": "None"}} for word in words))


class Slurm:
    """A stand-in for SLURM: it gives set answers and records in which form each was requested."""

    def __init__(self, version="slurm-wlm 24.11.5", text="", json=""):
        self.version, self.text, self.json, self.asked = version, text, json, []

    def __call__(self, command, *options):
        form = "version" if "--version" in options else "json" if "--json" in options else "text"
        self.asked.append(form)
        answer = getattr(self, form)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def slurm(monkeypatch):
    stand_in = Slurm()
    monkeypatch.setattr(scheduler, "call", stand_in)
    monkeypatch.setattr(scheduler, "_text_only", set())
    scheduler._has_json.cache_clear()
    yield stand_in
    scheduler._has_json.cache_clear()


@pytest.mark.parametrize(
    ("version", "form"),
    [
        ("slurm 22.05.8", "text"),
        ("slurm-wlm 23.11.4", "text"),
        ("slurm 24.05.0", "text"),
        ("slurm 24.05.1", "json"),
        ("slurm-wlm 24.11.5", "json"),
        ("slurm 26.05.1-0rc1", "json"),
        ("slurm of tomorrow", "text"),
        ("", "text"),
    ],
)
def test_json_is_requested_from_versions_whose_json_has_every_field(slurm, version, form):
    slurm.version, slurm.text, slurm.json = version, line(), answer(job(job_id=12))
    assert scheduler.user_jobs().keys() == {"12"}
    assert scheduler.find("12").id == "12"
    assert slurm.asked == ["version", form, form]


@pytest.mark.parametrize(
    "json", ["", "{}", answer(job(name=None)), Refused("JSON plugin load failure")]
)
def test_text_is_requested_if_json_fails(slurm, json):
    slurm.text, slurm.json = line(), json
    assert scheduler.user_jobs().keys() == {"12"}
    assert scheduler.user_jobs().keys() == {"12"}
    assert slurm.asked == ["version", "json", "text", "text"]


@pytest.mark.parametrize("text", [Unreachable("away"), "no job"])
def test_an_answer_that_cannot_be_read_in_either_form_is_unknown(slurm, text):
    slurm.text, slurm.json = text, "{}"
    for ask in (scheduler.user_jobs, lambda: scheduler.find("12"), lambda: scheduler.end("12")):
        with pytest.raises(Unreachable):
            ask()
    assert not scheduler._text_only


def test_an_unreachable_controller_is_not_asked_again_for_text(slurm):
    slurm.text, slurm.json = line(), Unreachable("Unable to contact slurm controller")
    with pytest.raises(Unreachable):
        scheduler.find("12")
    assert slurm.asked == ["version", "json"]


def test_a_job_that_slurm_does_not_know_is_none(slurm):
    slurm.json = Refused("slurm_load_jobs error: Invalid job id specified")
    assert scheduler.find("12") is None
    assert slurm.asked == ["version", "json"]


def test_array_elements_that_squeue_left_out_of_its_text_are_looked_up(slurm, monkeypatch):
    slurm.version, slurm.text = "slurm-wlm 22.05.8", several(1, 3, 5, 7, 9, 11)
    asked = []
    monkeypatch.setattr(scheduler, "known", lambda ids: asked.extend(ids) or {"7_13": "entry"})
    assert [*scheduler.user_jobs()] == ["7_1", "7_3", "7_5", "7_7", "7_9", "7_11", "7_13"]
    assert asked == ["7_13"]


@pytest.mark.parametrize(
    ("version", "answer", "how"),
    [
        ("22.05.8", "", None),
        ("22.05.8", "PREEMPTED\n", "PREEMPTED"),
        ("22.05.8", "CANCELLED by 1000\n", "CANCELLED"),
        ("22.05.8", "RUNNING\n", Unreachable),  # accounting is late
        ("22.05.8", "CANCELLED+\n", Unreachable),
        ("24.11.5", ended(), None),
        ("24.11.5", ended("PREEMPTED"), "PREEMPTED"),
        ("24.11.5", ended("CANCELLED", "COMPLETED"), "CANCELLED"),
        ("24.11.5", ended("RUNNING"), Unreachable),
    ],
)
def test_the_end_of_a_job_is_a_final_state_or_unknown(slurm, monkeypatch, version, answer, how):
    monkeypatch.setattr(scheduler, "find", lambda id: None)
    slurm.version, slurm.text, slurm.json = version, answer, answer
    if how is Unreachable:
        with pytest.raises(Unreachable, match="not in the queue"):
            scheduler.end("7")
    else:
        assert scheduler.end("7") == how
    assert slurm.asked == ["version", "text" if version < "24" else "json"]
