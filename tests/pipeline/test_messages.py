"""Test that messages are true: progress, remaining time, states of runs, and reasons of errors."""

import json
import time
from types import SimpleNamespace

import pytest

from pipeline import status
from pipeline.display import exits
from pipeline.display.errors import NoResult, StageFailed, UserError
from pipeline.execution import work
from pipeline.planning import compose
from pipeline.records import spent
from pipeline.records.schemas import Event, Progress
from pipeline.stages.prep import _nothing_left
from pipeline.training import announce as announce_module
from pipeline.training.announce import Announcer
from pipeline.training.growth import Growth
from pipeline.training.pace import Pace
from tests.dyrep.networks import network, optimizer_for
from tests.runs import composed, make_run


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, "epoch 1/2"),
        (1, "epoch 1/2"),
        (10, "epoch 1/2"),  # after the last step, the epoch is validated and adjusted
        (11, "epoch 2/2"),
        (20, "epoch 2/2"),  # the end of the training
    ],
)
def test_progress_names_the_epoch_of_the_last_step(step, expected):
    reported = []
    context = SimpleNamespace(started=0.0, progress=lambda *words: reported.append(words))
    announcer = Announcer(context, SimpleNamespace(main=True))
    recipe = compose.validated(json.loads(composed("train.epochs=2", "name=x"))).train
    announcer.pace = Pace(recipe, 10, None)
    announcer.progress(step, {})
    assert reported == [(step, 20, expected, None)]


@pytest.fixture
def timed(monkeypatch):
    """Return a clock, the `Announcer` of a training of 2 times 50 steps, and what it reports."""
    reported, clock = [], SimpleNamespace(seconds=10.0)
    now = SimpleNamespace(monotonic=lambda: clock.seconds, time=lambda: 0.0)
    context = SimpleNamespace(
        started=0.0,
        dir=None,
        event=lambda *_, **__: None,
        progress=lambda *words: reported.append(words),
    )
    monkeypatch.setattr(announce_module, "time", now)
    monkeypatch.setattr(announce_module.attempt, "last", lambda _: SimpleNamespace(time=0.0))
    announcer = Announcer(context, SimpleNamespace(main=True))
    recipe = compose.validated(json.loads(composed("train.epochs=2", "name=x"))).train
    announcer.pace = Pace(recipe, 50, None)
    announcer.mark(), announcer.mark()
    return clock, announcer, reported


def test_the_remaining_time_includes_the_adjustments_to_come(timed):
    """The training has 100 steps of 1 s and two adjustments of 40 s, the first after step 50."""
    clock, announcer, reported = timed
    announcer.first_step(0, "loader")
    clock.seconds += 50.0
    announcer.progress(50, {}, adjustments=2)
    with announcer.adjusting():
        clock.seconds += 40.0
    announcer.progress(50, {}, adjustments=1)
    assert [words[3] for words in reported] == [50.0, 50.0 + 40.0]
    assert [words[2] for words in reported] == ["epoch 1/2, 2 adjustments to come", "epoch 1/2"]


def test_an_adjustment_before_the_first_step_is_no_part_of_the_time_of_the_steps(timed):
    """A training that is resumed after step 50 adjusts first, then makes steps of 1 s."""
    clock, announcer, reported = timed
    with announcer.adjusting():
        clock.seconds += 40.0
    announcer.first_step(51, "loader")
    clock.seconds += 9.0
    announcer.progress(60, {}, adjustments=1)
    with announcer.adjusting():
        clock.seconds += 60.0
    announcer.progress(60, {})
    assert [words[3] for words in reported] == [40.0 + 40.0, 40.0]


# -9e4: the clock was set back
@pytest.mark.parametrize(("ago", "remains"), [(30, 60), (200, 0), (-9e4, 90)])
def test_status_shows_the_remaining_time_that_a_stage_computed(ago, remains):
    progress = Progress(done=1, total=10, text="", eta=90.0, time=time.time() - ago)
    events = [Event(time=time.time() - 31, event="first_step")]
    assert spent.eta(events, progress) == pytest.approx(remains, abs=1)


@pytest.mark.parametrize(("epochs", "times"), [(12, 5), (11, 5), (10, 4), (4, 1), (2, 0), (2.5, 1)])
def test_the_adjustments_to_come_are_counted(epochs, times):
    words = ("method.adjust_interval=2", "method.last_adjust_epoch=10", "name=x")
    method = compose.validated(json.loads(composed(*words))).method
    model = network()
    growth = Growth(model, optimizer_for(model), None, method, 0, None, {}, 0)
    assert growth.to_come(0, epochs) == times
    assert growth.to_come(10.5, epochs) == 0


@pytest.mark.parametrize(
    ("bad", "leaks", "expected", "untold"),
    [
        (0, 5, "5 training images are validation images", "quarantine"),
        (3, 0, "3 cannot be used (", "validation images"),
        (3, 5, "3 cannot be used (", "begin with"),
        (0, 0, "there was none to begin with", "quarantine"),
    ],
)
def test_the_error_says_why_no_image_is_left(tmp_path, bad, leaks, expected, untold):
    records = [SimpleNamespace(bad=[{}] * bad)]
    message = _nothing_left(SimpleNamespace(dir=tmp_path), "train image", records, leaks)
    assert expected in message and untold not in message.replace(str(tmp_path), "")


@pytest.mark.parametrize(("side", "refused"), [(15, False), (16, True), (40, True)])
def test_a_cutout_that_covers_whole_images_is_refused(side, refused):
    settings = json.loads(composed("name=x"))  # images have 16 pixels
    settings["train"]["augment"]["cutout"] = side
    if refused:
        with pytest.raises(UserError, match=f"train.augment.cutout={side} covers whole images"):
            compose.validated(settings)
    else:
        compose.validated(settings)


@pytest.mark.parametrize(
    ("asked", "state", "last"),
    [
        (("prep", "train", "fuse", "eval", "latency"), "done", "report: "),
        (("prep",), "partly done", "python -m pipeline.launch name=x"),
        (("prep", "train", "fuse"), "partly done", "python -m pipeline.launch name=x"),
    ],
)
def test_a_run_is_done_when_all_its_stages_are(tmp_path, capsys, asked, state, last):
    make_run(tmp_path, "x", finished=asked, asked=asked)
    status.main(["x", "--root", str(tmp_path), "--json"])
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["state"] == state
    status.main(["x", "--root", str(tmp_path)])
    assert last in capsys.readouterr().out.splitlines()[-1]


def test_the_last_printed_line_is_the_error(capsys):
    def fails():
        raise StageFailed("  | a line of a log\n  | another\ntrain did not finish: why")

    assert exits.result_or_code(fails, "here") == 1
    text = "  | a line of a log\n  | another\nerror: train did not finish: why\n"
    assert capsys.readouterr().err == text


@pytest.mark.parametrize(
    ("error", "processes", "code", "printed", "noted"),
    [
        (NoResult("it diverged"), False, 1, "error: NoResult: it diverged\n", "error"),
        (
            NoResult("it diverged"),
            True,
            1,
            "",
            "error",
        ),  # the parent of the processes prints the reason
        (UserError("no such file"), False, 2, "error: no such file\n", "input"),
        (UserError("no such file"), True, 2, "", "input"),
        (RuntimeError("a defect"), True, 1, "RuntimeError: a defect\n", "error"),
        (RuntimeError("a\nb"), True, 1, "RuntimeError: a\nb\n", "error"),
    ],
)
def test_an_error_with_an_explanation_has_no_traceback(
    monkeypatch, capsys, error, processes, code, printed, noted
):
    monkeypatch.setattr(work.attempt, "vanished", lambda _: False)
    events = []
    context = SimpleNamespace(
        dir=None, stage=SimpleNamespace(processes=processes),
        event=lambda name, **facts: events.append((name, facts["kind"], facts["message"])),
    )  # fmt: skip
    assert work._failed(context, error) == code
    errors = capsys.readouterr().err
    assert errors == printed  # the traceback of an error that was never raised has one line
    ((name, kind, message),) = events
    assert (name, kind) == ("failed", noted)
    assert message.endswith(str(error).partition("\n")[0])
