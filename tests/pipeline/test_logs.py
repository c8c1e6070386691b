"""Test the command `logs`: it prints ranks, nodes and events in order, attempt after attempt."""

import pytest

from pipeline import logs
from pipeline.contract.table import STAGES
from pipeline.display.errors import UserError
from pipeline.records import rundir, timeline
from pipeline.records.schemas import Event
from tests.runs import make_run

EVENTS = [  # the events of a job that was preempted, and then given up
    {"time": 0, "event": "began", "job": "7", "restart": 0, "nodes": ["n1", "n2"]},
    {"time": 1, "event": "joined", "job": "7", "restart": 0, "node": 1},
    {"time": 2, "event": "started", "attempt": 1},
    {"time": 3, "event": "first_step", "attempt": 1, "step": 1},
    {"time": 4, "event": "signal", "job": "7", "restart": 0, "signal": "SIGTERM"},
    {"time": 5, "event": "stopped", "attempt": 1},
    {"time": 6, "event": "requeued", "job": "7", "restart": 0, "why": "interrupted", "saved": 9},
    {"time": 7, "event": "began", "job": "7", "restart": 1, "nodes": ["n3", "n4"]},
    {"time": 8, "event": "started", "attempt": 2},
    {"time": 9, "event": "resumed", "attempt": 2, "step": 9},
    {"time": 10, "event": "failed", "attempt": 2, "message": "broken"},
    {"time": 11, "event": "gave_up", "job": "7", "restart": 1, "why": "crashed", "saved": 9},
]
FILES = {
    "attempt-001.log": "one zero\n", "attempt-001.rank1.log": "one one\n",
    "attempt-001.node1.log": "one node\n", "attempt-001.rank10.log": "one ten\n",
    "attempt-001.rank2.log": "one two\n", "attempt-002.log": "two zero\n",
}  # fmt: skip


@pytest.fixture
def stage(tmp_path):
    """Return the root, and the directory of a stage with these events and log files."""
    directory = tmp_path / "stages" / "train-0"
    (directory / "logs").mkdir(parents=True)
    for name, text in FILES.items():
        (directory / "logs" / name).write_text(text)
    for row in EVENTS:
        rundir.append_line(directory / rundir.EVENTS, row)
    rundir.append_line(directory / "jobs.jsonl", {"time": 0, "event": "submitted", "id": "7"})
    jobs = rundir.job_dir(tmp_path)
    jobs.mkdir(parents=True)
    (jobs / "7_0_log.out").write_text("supervisor zero\n")
    (jobs / "7_1_log.out").write_text("supervisor one\n")
    return tmp_path, directory


def printed(reader, capsys):
    reader.read()
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("-- 01 Jan ")[9:] if "01 Jan" in line else line for line in lines]


def test_ranks_nodes_and_events_are_printed_in_order(stage, capsys):
    root, directory = stage
    lines = printed(logs.Reader(root, directory, None), capsys)
    assert [line for line in lines if not line.startswith("-- /")] == [
        "supervisor zero", "supervisor one",
        "job 7 begins on n1, n2", "attempt 1 begins",
        "one zero", "one node", "one one", "one two", "one ten",
        "SLURM sends SIGTERM", "attempt 1 has saved and stopped",
        "requeued (interrupted), up to 9 is saved",
        "job 7 begins on n3, n4", "attempt 2 begins", "attempt 2 goes on from step 9",
        "two zero", "failed: broken", "given up (crashed), up to 9 is saved",
    ]  # fmt: skip


@pytest.mark.parametrize(("rank", "message"), [(0, "zero"), (1, "one"), (10, "ten")])
def test_only_the_log_of_the_chosen_rank_is_printed(stage, capsys, rank, message):
    lines = printed(logs.Reader(*stage, rank), capsys)
    texts = [text.strip() for text in FILES.values()]
    assert [line for line in lines if line in texts] == [
        t for t in texts if t.endswith(f" {message}")
    ]
    assert "requeued (interrupted), up to 9 is saved" in lines


def test_following_prints_only_new_lines(stage, capsys):
    root, directory = stage
    reader = logs.Reader(root, directory, None)
    reader.read()
    capsys.readouterr()
    (directory / "logs" / "attempt-003.log").write_text("three\n")
    rundir.append_line(directory / rundir.EVENTS, {"time": 12, "event": "started", "attempt": 3})
    assert [line for line in printed(reader, capsys) if "/" not in line] == [
        "attempt 3 begins", "three",
    ]  # fmt: skip


def test_attempts_without_a_supervisor_are_separated():
    rows = [Event(time=n, event="started", attempt=n) for n in (1, 2, 2, 3)]
    assert [part.attempt for part in timeline.by_attempt(rows)] == [1, 2, 3]


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_without_a_stage_the_end_of_each_log_and_all_of_the_last_are_shown(
    tmp_path, capsys, follow
):
    run = make_run(tmp_path, "r")
    for stage in ("train", "latency"):
        (run / stage / "logs").mkdir()
        text = "".join(f"{stage} {number}\n" for number in range(20))
        (run / stage / "logs" / "attempt-001.log").write_text(text)
    assert logs.main(["r", "--root", str(tmp_path), *follow]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("== ")] == list(STAGES)
    assert [line for line in lines if line.startswith("train ")] == [
        f"train {number}" for number in range(20 - logs.END, 20)
    ]
    assert f"lines before these: python -m pipeline.logs r train --root {tmp_path}" in "".join(
        lines
    )
    assert [line for line in lines if line.startswith("latency ")] == [
        f"latency {number}" for number in range(20)
    ]


@pytest.mark.parametrize("time", [9e11, -9e11])
def test_an_impossible_time_is_damage(stage, time):
    root, directory = stage
    rundir.append_line(directory / rundir.EVENTS, {"time": time, "event": "started", "attempt": 3})
    with pytest.raises(UserError, match=r"events.jsonl line 13 is damaged \(time: "):
        logs.Reader(root, directory, None).read()
