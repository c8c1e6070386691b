"""Test the comparison of a published training log with a run."""

import json

import pytest

from benchmarks import published_log
from pipeline.display.errors import UserError

LOG = """
10:00:00 INFO Train: 0 [   0/391] Loss: 2.300 (2.300) LR: 1.000e-01 Time: 0.10s (0.10s) Data: 0.01s
10:00:09 INFO Test: 0 [   0/79] Loss: 1.4 (1.4) Top-1: 50.000% (50.000%) Top-5: 90.000% (90.000%) Time: 0.10s
10:00:10 INFO Test: 0 [  78/79] Loss: 1.4 (1.3) Top-1: 60.000% (51.250%) Top-5: 90.000% (91.000%) Time: 0.10s
10:00:11 INFO DyRep: adjust model.
10:00:12 INFO Test: 0 [  78/79] Loss: 1.4 (1.3) Top-1: 60.000% (51.000%) Top-5: 90.000% (91.000%) Time: 0.10s
10:00:20 INFO Test: 1 [  78/79] Loss: 1.4 (1.3) Top-1: 60.000% (58.500%) Top-5: 90.000% (91.000%) Time: 0.10s
"""


def test_the_last_test_of_each_epoch_is_compared_with_that_epoch_of_the_run(tmp_path, capsys):
    log, train = tmp_path / "log.txt", tmp_path / "run" / "train"
    log.write_text(LOG)
    train.mkdir(parents=True)
    rows = [
        {"kind": "epoch", "step": epoch, "epoch": epoch, "samples": 64, "loss": 1.0, "top1": top1,
         "val_loss": 1.0, "top5": 90.0, "seconds": 1.0, "data_seconds": 0.1, "parameters": 5}
        for epoch, top1 in ((1, 52.0), (2, 57.5))
    ]  # fmt: skip
    (train / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert published_log.main([str(log), str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["1", "51.00", "52.00", "+1.00"], ["2", "58.50", "57.50", "-1.00"]]  # fmt: skip
    assert lines[3] == "published: best 58.50 %, last 58.50 % after 2 epochs"


def test_a_file_without_tests_is_refused(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("nothing\n")
    with pytest.raises(UserError, match="no line like"):
        published_log.published(log)
