"""Test how the rows of a long history are thinned for W&B and the report, and the limit on time."""

import itertools
import json
import random
import subprocess
import sys

import pytest

from pipeline.display.thinning import ALL, shown
from pipeline.report import run_data
from pipeline.tracking.rows import Steps
from tests.launcher import PROJECT
from tests.runs import make_run


@pytest.mark.parametrize(
    ("length", "points"), [(4_000, 4_000), (8_000, 6_000), (600_000, 18_343), (1_000_000, 19_906)]
)
def test_the_number_of_points_grows_slowly_with_the_length(length, points):
    assert sum(map(shown, range(1, length + 1))) == points


def test_the_gaps_between_points_are_bounded():
    numbers = [number for number in range(1, 300_000) if shown(number)]
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    assert all(gap <= 2 * number / ALL + 1 for gap, number in zip(gaps, numbers, strict=False))


def history(steps, per_epoch):
    for step in range(1, steps + 1):
        epoch = (step - 1) // per_epoch + 1
        yield {"kind": "step", "step": step, "epoch": epoch, "loss": 1 / step}
        if step % per_epoch == 0:
            yield {"kind": "epoch", "step": step, "epoch": epoch, "top1": step / 1000}


@pytest.fixture
def lines():
    return [json.dumps(row) + "\n" for row in history(steps=20_000, per_epoch=333)]


def test_the_rows_do_not_depend_on_how_the_file_grew(tmp_path, lines):
    """The history is read in pieces that end within rows, and is cut back as after a resume."""
    file, chance = tmp_path / "history.jsonl", random.Random(0)
    file.write_text("".join(lines))
    whole = list(Steps(tmp_path).new(complete=True))
    got, steps, until = [], Steps(tmp_path), 0
    while until < len(lines):
        until = min(len(lines), until + chance.randrange(2_000))
        file.write_text("".join(lines[:until]) + lines[min(until, len(lines) - 1)][:9])
        got += steps.new(complete=False)
        file.write_text("".join(lines[: max(0, until - chance.randrange(500))]))
        got += steps.new(complete=False)
    file.write_text("".join(lines))
    got += steps.new(complete=True)
    assert got == whole
    assert len(whole) < 9_000
    numbers = [row["step"] for row in whole]
    assert numbers == sorted(set(numbers))
    assert [row["epoch/top1"] for row in whole if "epoch/top1" in row] == [
        step / 1000 for step in range(333, 20_001, 333)
    ]
    assert all("train/loss" in row for row in whole)


def test_changes_of_the_network_are_never_left_out(tmp_path, lines):
    (tmp_path / "history.jsonl").write_text("".join(lines))
    event = {"epoch": 3, "step": 19_001, "action": "grow", "saliency": None}
    event |= {"layer": "a", "branches": [], "parameters": 1, "flops": 1}
    (tmp_path / "growth.jsonl").write_text(json.dumps(event) + "\n")
    (row,) = [row for row in Steps(tmp_path).new(complete=True) if "growth/grown" in row]
    assert row["step"] == 19_001 and "train/loss" in row


def test_the_report_is_thinned_too(tmp_path, lines):
    run = make_run(tmp_path, "long")
    (run / "train" / "history.jsonl").write_text("".join(lines))
    story = run_data.read(run)
    assert len(story.epochs) == 60
    assert len(story.steps) == 8_500


NO_STEP = '{"kind": "step", "step": "7", "epoch": 1}'


@pytest.mark.parametrize(
    "line", ["null", "[1]", '"text"', "{}", '{"kind": "step"}', "\\xff", NO_STEP]
)
def test_a_line_that_is_not_a_row_counts_as_damaged(tmp_path, line):
    good = '{"kind": "step", "step": 1, "epoch": 1}\n'
    (tmp_path / "history.jsonl").write_bytes(line.encode("latin-1") + b"\n" + good.encode())
    steps = Steps(tmp_path)
    assert [row["step"] for row in steps.new(complete=True)] == [1]
    assert len(steps.damaged) == 1


WAITING = """
import time
from pipeline.tracking import session
session.LIMIT = 1
session.expire(1)
for _ in range(5):
    time.sleep(0.3)
    session._progress()
print("progress counts", flush=True)
time.sleep(60)
"""


def test_the_limit_counts_from_the_last_progress():
    done = subprocess.run(
        [sys.executable, "-c", WAITING], cwd=PROJECT, capture_output=True, text=True, timeout=55
    )
    assert (done.returncode, done.stdout) == (1, "progress counts\n")
    assert done.stderr.startswith("error: no progress for 1 s")
