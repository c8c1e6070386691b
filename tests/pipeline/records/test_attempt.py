"""Test `records.attempt`: stopped processes, waiting for the first node, and how attempts end."""

import os
import signal
import subprocess

import pytest

from pipeline.records import attempt, rundir


def test_a_process_after_sigstop_counts_as_stopped():
    process = subprocess.Popen(["sleep", "100"])
    assert not attempt.stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    assert attempt.stopped(process.pid)
    process.kill()
    process.wait()
    assert not attempt.stopped(process.pid)


def test_a_node_that_waits_for_the_first_node_of_its_job_obeys_a_stop_signal(tmp_path):
    with pytest.raises(attempt.Interrupted):
        attempt.join(tmp_path, "1.0", lambda: True)


def rows(directory, *events):
    for number, event in enumerate(events):
        name, _, kind = event.partition(" ")
        row = {"time": number, "attempt": 2, "event": name, "message": event}
        rundir.append_line(directory / rundir.EVENTS, {**row, **({"kind": kind} if kind else {})})


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((), None),
        (("started", "saved"), None),
        (("started", "failed error"), 1),
        (("failed error", "failed input"), 1),
        (("failed error", "failed error", "failed killed"), 2),
        (("failed input", "failed killed"), 0),
        (("failed error", "stopped"), 1),
        (("stopped", "failed error"), 0),
    ],
)
def test_of_several_ends_the_one_that_caused_the_others_is_returned(tmp_path, events, expected):
    rundir.append_line(tmp_path / rundir.EVENTS, {"time": 0, "attempt": 1, "event": "stopped"})
    rundir.append_line(tmp_path / rundir.EVENTS, {"time": 0, "event": "requeued", "restart": 0})
    rows(tmp_path, *events)
    found = attempt.ending(tmp_path, 2)
    assert (found and found.time) == expected
