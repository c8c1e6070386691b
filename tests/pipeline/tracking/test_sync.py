"""Test `pipeline.sync`, and offline runs that the command `wandb sync` can send."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import sync, tracking
from pipeline.config import Wandb
from pipeline.display.errors import UserError
from pipeline.records import rundir
from pipeline.tracking import reach, rows
from tests.launcher import PROJECT, no_longer_than
from tests.runs import make_run

pytest.importorskip("wandb")


@pytest.fixture
def many(tmp_path):
    return [make_run(tmp_path, f"r{n}", seed=n, group="a" if n < 2 else "b") for n in range(4)]


def test_all_runs_arrive_and_are_not_sent_again(recorder, many, python, tmp_path):
    done = python("sync", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == f"4 sent to {recorder.url}, 0 unchanged since they were sent"
    assert sorted((run.display, run.group) for run in recorder.runs.values()) == [
        ("r0", "a"), ("r1", "a"), ("r2", "b"), ("r3", "b"),
    ]  # fmt: skip
    again = python("sync", "--root", tmp_path)
    assert again.stdout.startswith("0 sent") and "4 unchanged" in again.stdout
    assert [len(run.exits) for run in recorder.runs.values()] == [1, 1, 1, 1]
    with (many[2] / "train" / "history.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 7, "epoch": 3, "loss": 1.0}\n')
    assert python("sync", "--root", tmp_path, "r2", "r3").stdout.startswith("1 sent")
    (grown,) = [run for run in recorder.runs.values() if run.display == "r2"]
    assert grown.steps == [1, 2, 3, 4, 5, 6, 7]


def test_a_group_alone_can_be_sent(recorder, many, python, tmp_path):
    assert python("sync", "--root", tmp_path, "--group", "b").returncode == 0
    assert sorted(run.display for run in recorder.runs.values()) == ["r2", "r3"]


def test_a_killed_sync_continues_when_it_is_started_again(recorder, many, tmp_path, python):
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.sync", "--root", tmp_path, "--jobs", "1"],
        cwd=PROJECT, env=recorder.environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not any((run / ".wandb.sent").exists() for run in many):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert python("sync", "--root", tmp_path).returncode == 0
    assert [run.steps for run in recorder.runs.values()] == 4 * [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"WANDB_API_KEY": ""}, 2, "there is no API key"),
        ({"WANDB_API_KEY": "w" * 40}, 2, "invalid API key"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, 2, "does not answer"),
        ({"WANDB_BASE_URL": "nonsense"}, 2, "WANDB_BASE_URL=nonsense is not the address of a serv"),
    ],
)
def test_bad_input_is_refused_without_a_traceback(
    recorder, many, python, tmp_path, environment, code, words
):
    done = python("sync", "--root", tmp_path, "r0", **environment)
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not recorder.runs


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "ftp://host",
        "http://",
        "https://host:x",
        "http://[::1",
        "http://a b",
        "host:80",
    ],
)
def test_an_invalid_address_of_the_server_is_refused(monkeypatch, address):
    monkeypatch.setenv("WANDB_BASE_URL", address)
    with pytest.raises(UserError, match=r"write https://HOST or http://HOST:PORT, or unset it"):
        reach.check()


@pytest.mark.parametrize(
    "address", [None, "http://localhost:8080", "https://h/x", "http://[::1]:1"]
)
def test_a_valid_address_of_the_server_is_accepted(monkeypatch, address):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    if address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
    reach.check()


def test_a_run_that_was_deleted_at_the_server_is_reported(recorder, many, python, tmp_path):
    recorder.deleted.add(rundir.read_json(many[0] / "run.json")["wandb"]["id"])
    done = python("sync", "--root", tmp_path, "r0")
    assert done.returncode == 1
    assert "previously created and deleted" in done.stderr


def test_an_unknown_run_or_group_is_named(recorder, many, python, tmp_path):
    for words in (["nobody"], ["--group", "nobody"]):
        done = python("sync", "--root", tmp_path, *words)
        assert done.returncode == 2 and "nobody" in done.stderr


def test_offline_mode_leaves_one_directory_that_wandb_sync_sends(recorder, run, monkeypatch):
    watched = Wandb(mode="offline", project="p", entity=None)
    for _ in range(3):  # as three launches do
        tracking.mirror(run, watched)
    (directory,) = (run / "wandb").glob("offline-run-*")
    client = [str(Path(sys.executable).with_name("wandb")), "sync", directory]
    done = subprocess.run(
        client, env=recorder.environment(), cwd=run, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (arrived,) = recorder.runs.values()
    assert arrived.steps == [1, 2, 3, 4, 5, 6]
    assert arrived.state == "finished"
    assert rows.results(run).items() <= arrived.summary.items()
    train = (run / "train").resolve()  # the training is repeated, which makes a second offline run
    train.with_name(f"{train.name}.again-1").mkdir()
    for _ in range(2):
        tracking.mirror(run, watched)
    assert directory.is_dir() and len(list((run / "wandb").glob("offline-run-*"))) == 2


def test_a_damaged_offline_file_is_written_again_from_the_run(recorder, run, python):
    """The mirror reads the files of the run, never an earlier `.wandb` file."""
    tracking.mirror(run, Wandb(mode="offline", project="p", entity=None))
    (segment,) = run.glob("wandb/offline-run-*/*.wandb")
    segment.write_bytes(segment.read_bytes()[:50] + b"\0" * 99)
    assert python("sync", "--root", run.parents[1]).returncode == 0
    tracking.mirror(run, Wandb(mode="offline", project="p", entity=None))
    (again,) = run.glob("wandb/offline-run-*/*.wandb")
    assert b"\0" * 99 not in again.read_bytes()
    (arrived,) = recorder.runs.values()
    assert arrived.steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("trouble", ["refuses", "hang"])
def test_online_mode_without_a_server_becomes_offline_with_one_note(
    recorder, run, python, capsys, monkeypatch, trouble
):
    for name, value in recorder.environment().items():
        monkeypatch.setenv(name, value)
    if trouble == "refuses":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    else:
        recorder.trouble = "hang"
    with no_longer_than(120):
        tracking.mirror(run, Wandb(mode="online", project="p", entity=None))
    output = capsys.readouterr().out
    assert output.count("note:") == 1 and "pipeline.sync one" in output
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    recorder.trouble = None
    assert python("sync", "--root", run.parent.parent).returncode == 0
    assert next(iter(recorder.runs.values())).steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_bytes(b"\xff"), Path.mkdir])
def test_an_unreadable_record_of_the_last_sync_counts_as_unsent(tmp_path, make):
    make(tmp_path / sync.SENT)
    with no_longer_than(60):
        assert sync._sent(tmp_path) is None
