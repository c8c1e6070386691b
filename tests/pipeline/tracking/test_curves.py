"""Test `tracking.curves`: CSV and TensorBoard files hold each step once, also after interruptions."""

import csv
import json
import os
import threading

import pytest

from pipeline.config import Disabled
from pipeline.display.errors import UserError
from pipeline.planning import preflight
from pipeline.records import rundir
from pipeline.tracking import curves, mirror
from tests.runs import composed, make_run


def table(run):
    with (run / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def events(run, name):
    """Return the steps and values that TensorBoard reads for a name."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = reader.EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    return [(event.step, round(event.value, 4)) for event in shown.Scalars(name)]


def test_a_csv_has_a_row_per_step_and_a_column_per_number(tmp_path):
    run = make_run(tmp_path, "r")
    for _ in range(2):  # the second call writes the same file
        assert curves.write(run, ["csv"]) == 6
    rows = table(run)
    assert [row["step"] for row in rows] == list("123456")
    assert [row["epoch/top1"] for row in rows] == ["", "", "50.0", "", "", "80.0"]
    assert rows[2]["growth/grown"] == "1" and rows[0]["train/loss"] == "1.5"


def test_repeated_steps_are_written_once(tmp_path):
    run = make_run(tmp_path, "r", epochs=(50.0, 80.0, 90.0))
    curves.write(run, ["csv", "tensorboard"])
    history = run / "train" / rundir.HISTORY
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:6]))  # cut back to the rows of a checkpoint
    curves.write(run, ["csv", "tensorboard"])
    assert [row["step"] for row in table(run)] == list("12345")
    history.write_text("".join(lines[:6]) + "".join(lines[6:]).replace("80.0", "81.0"))
    curves.write(run, ["csv", "tensorboard"])
    assert [row["step"] for row in table(run)] == list("123456789")
    assert events(run, "epoch/top1") == [(3, 50.0), (6, 81.0), (9, 90.0)]
    assert [step for step, _ in events(run, "train/loss")] == list(range(1, 10))
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_a_training_is_followed_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "PAUSE", 0.01)
    run = make_run(tmp_path, "r", epochs=(50.0, 80.0))
    train = run / "train"
    history, result = train / rundir.HISTORY, (train / rundir.RESULT).read_text()
    lines = history.read_text().splitlines(keepends=True)
    history.write_text(lines[0])
    (train / rundir.RESULT).unlink()
    follower = threading.Thread(target=curves.write, args=(run, ["csv"], os.getpid()))
    follower.start()
    for line in lines[1:]:
        with history.open("a") as file:
            file.write(line)
    (train / rundir.RESULT).write_text(result)
    follower.join(timeout=60)
    assert [row["step"] for row in table(run)] == list("123456")


@pytest.mark.long
def test_a_mirror_writes_curves_in_its_own_process(tmp_path):
    run = make_run(tmp_path, "r")
    mirror(run, Disabled(mode="disabled", also=["csv"]))
    assert len(table(run)) == 6
    assert not (run / "wandb.log").exists()


@pytest.mark.long
def test_a_failed_mirror_is_only_a_note(tmp_path, capsys):
    run = make_run(tmp_path, "r")
    (run / "csv").write_text("in the way")
    mirror(run, Disabled(mode="disabled", also=["csv"]))
    assert "no result is affected" in capsys.readouterr().out


def test_tensorboard_is_refused_at_launch_if_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    config = preflight_config(tmp_path, also=["tensorboard"])
    with pytest.raises(UserError, match=r"pip install tensorboard.*also=\[csv\]"):
        preflight.check(config)
    preflight.check(preflight_config(tmp_path, also=["csv"]))


def preflight_config(root, also):
    from pipeline.planning import compose

    tree = json.loads(composed("tracking=disabled", "name=x"))
    return compose.validated(
        tree | {"root": str(root), "tracking": {"mode": "disabled", "also": also}}
    )


def test_a_single_format_is_accepted_and_an_unknown_one_is_refused(tmp_path):
    assert preflight_config(tmp_path, also="csv").tracking.also == ["csv"]
    for wrong in (["xls"], 7, None, [["csv"]]):
        with pytest.raises(UserError, match=r"tracking\.also"):
            preflight_config(tmp_path, also=wrong)
