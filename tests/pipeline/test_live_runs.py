"""Test that `status` and `cancel` find the process of a stage, from any directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from pipeline import cancel, status
from pipeline.execution import local
from pipeline.records import attempt, rundir
from pipeline.records.progress import Onlooker
from pipeline.records.schemas import Attempt
from slurm.records import CANCELLED
from tests.launcher import PROJECT, no_longer_than
from tests.runs import make_run

STAND_IN = """
import pathlib, signal, sys, time
from pipeline.records import attempt
if sys.argv[2] == "leaves":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
attempt.claim(pathlib.Path(sys.argv[1]))
print("begun", flush=True)
time.sleep(60)
"""


@pytest.fixture
def live(tmp_path, monkeypatch):
    """Return a function that starts a process which claims the stage `train` of run `x`, and waits.

    The argument "leaves" makes the process end at SIGTERM; any other makes it ignore SIGTERM.
    """
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "outputs", "x", finished=("prep",))
    begun = []

    def begin(manner):
        words = [sys.executable, "-c", STAND_IN, str((run / "train").resolve()), manner]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        begun.append(subprocess.Popen(words, stdout=subprocess.PIPE, env=environment))
        assert begun[0].stdout.readline() == b"begun\n"
        return begun[0]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def states(capsys, *root):
    capsys.readouterr()
    assert status.main(["x", "--json", *root]) == 0
    return [stage["state"] for stage in json.loads(capsys.readouterr().out)["runs"][0]["stages"]]


def test_a_running_stage_is_shown_and_cancelled_from_any_directory(
    live, capsys, monkeypatch, tmp_path
):
    process = live("leaves")
    for stage in (
        "fuse",
        "eval",
        "latency",
    ):  # a launch creates these directories only when the stages start
        shutil.rmtree((tmp_path / "outputs" / "runs" / "x" / stage).resolve(), ignore_errors=True)
    for root in ([], ["--root", "outputs"], ["--root", f"{tmp_path}/./outputs/"]):
        assert states(capsys, *root)[:3] == ["done", "running", "not started"]
    monkeypatch.chdir("/")
    assert states(capsys, "--root", f"{tmp_path}/outputs")[1] == "running"
    monkeypatch.setattr("pipeline.cancel.PATIENCE", 30.0)
    waiting = subprocess.Popen(  # while this process reaps the stage, as a launcher does
        [sys.executable, "-m", "pipeline.cancel", "x", "--root", f"{tmp_path}/outputs"],
        cwd=PROJECT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.wait(60)
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert "train of x: running → cancelled" in output
    assert f"pipeline.launch name=x root={tmp_path}/outputs" in output
    assert states(capsys, "--root", f"{tmp_path}/outputs")[1:] == 4 * ["cancelled"]


def test_cancel_leaves_a_stage_that_another_run_needs(live, capsys, tmp_path):
    live("leaves")
    shared = (tmp_path / "outputs" / "runs" / "x" / "train").resolve()
    rundir.append_line(shared / rundir.JOBS, {"time": 1.0, "executor": "local", "run": "x"})
    run = make_run(tmp_path / "outputs", "y", finished=("prep",))
    (run / "train").unlink()
    (run / "train").symlink_to(shared)
    assert cancel.main(["y"]) == 0
    assert "train of y goes on: x needs it, too" in capsys.readouterr().out
    assert states(capsys)[1] == "running"


def test_an_attempt_on_another_machine_ends_with_its_last_event(live, capsys, tmp_path):
    live("leaves")
    train = (tmp_path / "outputs" / "runs" / "x" / "train").resolve()
    owner = rundir.read_json(train / Attempt.FILE)
    rundir.write_json(train / Attempt.FILE, owner | {"host": "another"})
    row = {"done": 1, "total": 2, "text": "", "time": time.time()}
    rundir.write_json(train / rundir.PROGRESS, row)
    assert states(capsys)[1] == "running"
    row = {"time": time.time(), "event": "stopped", "attempt": owner["attempt"]}
    rundir.append_line(train / rundir.EVENTS, row)
    assert states(capsys)[1] == "stopped"


def test_a_stage_that_ignores_the_signal_is_not_called_cancelled(live, capsys, monkeypatch):
    process = live("stays")
    monkeypatch.setattr("pipeline.cancel.PATIENCE", 0.3)
    assert cancel.main(["x"]) == 1
    printed = capsys.readouterr()
    assert "train of x: running → cancelled" not in printed.out
    assert f"kill -9 {process.pid}" in printed.err
    assert states(capsys)[1] == "stopping"
    process.kill()  # not reaped yet
    until = time.monotonic() + 20
    while (state := states(capsys)[1]) == "stopping":
        assert time.monotonic() < until
    assert state == "cancelled"


PAUSED = """
import os, signal, sys, time
parent = os.getpid()
child = os.fork()
signal.signal(signal.SIGTERM, lambda *_: sys.exit() if child else os._exit(0))
if child:
    print(child, flush=True)
    os.waitpid(child, 0)  # parent and child stand for a rank and a worker of its data loader
time.sleep(60)
"""


@pytest.mark.parametrize("asked", ["Ctrl-C", "cancel"])
def test_a_stop_request_continues_suspended_processes(tmp_path, asked):
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        child = int(process.stdout.readline())
        os.killpg(process.pid, signal.SIGSTOP)
        while not (attempt.stopped(child) and attempt.stopped(process.pid)):
            time.sleep(0.01)
        if asked == "cancel":
            (tmp_path / CANCELLED).touch()
        planned = SimpleNamespace(dir=tmp_path, stage=SimpleNamespace(name="train"))
        stops = [signal.SIGINT] if asked == "Ctrl-C" else []
        with no_longer_than(60):
            local._wait(process, planned, Onlooker(), stops)
        assert process.returncode == 0
        assert not attempt.stopped(child)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide /proc")
@pytest.mark.parametrize("hide", ["umount -l /proc", "mount --bind /var/empty /proc"])
def test_a_running_stage_is_shown_and_cancelled_without_proc(live, tmp_path, hide):
    process = live("leaves")
    root = str(tmp_path / "outputs")
    hide = hide.replace("/var/empty", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    words = ["unshare", "--mount", "sh", "-c", f'{hide}; test ! -e /proc/self && exec "$@"', "sh"]

    def without_proc(command):
        words_after = [sys.executable, "-m", f"pipeline.{command}", "x", "--root", root]
        done = subprocess.run(
            [*words, *words_after], cwd=PROJECT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for sent in (signal.SIGSTOP, signal.SIGCONT):
        process.send_signal(sent)
        output = without_proc("status")
        assert "train    running" in output and "or stopped, by Ctrl-Z or SIGSTOP" in output
    assert "prep of x" in without_proc("logs")
    waiting = threading.Thread(target=process.wait)  # reaps the stage, as a launcher does
    waiting.start()
    assert "train of x: running → cancelled" in without_proc("cancel")
    waiting.join()
    assert "train    cancelled" in without_proc("status")


@pytest.mark.parametrize("change", [{"born": 1}, {"pid": 2**22 + 1}, {"host": "elsewhere"}])
def test_another_process_with_the_same_id_is_not_the_stage(live, capsys, change, tmp_path):
    process = live("leaves")
    train = (tmp_path / "outputs" / "runs" / "x" / "train").resolve()
    assert attempt.alive(train)
    owner = json.loads((train / Attempt.FILE).read_text())
    (train / Attempt.FILE).write_text(json.dumps(owner | change))
    assert not attempt.alive(train)
    assert states(capsys)[1] != "running"
    assert cancel.main(["x"]) == 0
    assert process.poll() is None, "cancel ended a process of another stage"


def test_an_attempt_of_an_older_version_is_recognized_by_its_command(live, tmp_path):
    live("leaves")
    train = (tmp_path / "outputs" / "runs" / "x" / "train").resolve()
    owner = json.loads((train / Attempt.FILE).read_text())
    del owner["born"]
    (train / Attempt.FILE).write_text(json.dumps(owner))
    assert attempt.alive(train)
    (train / Attempt.FILE).write_text(json.dumps(owner | {"pid": os.getpid()}))
    assert not attempt.alive(train)
