"""Test failed writes, clocks set back and late cancels: one clear line, and nothing half-written."""

import errno
import os
import signal
import subprocess
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from pipeline.contract.stage import Context
from pipeline.contract.table import STAGES
from pipeline.display.errors import BAD_INPUT, Cancelled, Interrupted, UserError
from pipeline.execution import dispatch, ending, local, work
from pipeline.execution.processes import End
from pipeline.planning import named_run, sweep
from pipeline.records import attempt, disk, rundir, spent, store
from pipeline.records.schemas import Event
from slurm.records import CANCELLED


def refusing(code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.fixture
def directory(tmp_path):
    (tmp_path / rundir.STAGE).touch()
    return tmp_path


@pytest.fixture
def context(directory):
    return Context(
        stage=STAGES["eval"], dir=directory, root=directory, fingerprint="f", config=None,
        parents={}, attempt=1,
    )  # fmt: skip


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path, code):
    path = tmp_path / "result.json"
    with (
        pytest.raises(OSError, match=r"result\.json") as refused,
        disk.replacing(path) as temporary,
    ):
        temporary.write_text("half")
        refusing(code)()
    assert refused.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "cure"),
    [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EROFS, "make it writable")],
)
def test_a_stage_reports_one_line_even_if_its_event_cannot_be_written(
    context, monkeypatch, capsys, code, cure
):
    monkeypatch.setattr(rundir, "append_line", refusing(code))
    error = OSError(code, os.strerror(code), str(context.dir / "eval.json"))
    assert work._failed(context, error) == BAD_INPUT
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "eval.json" in errors and cure in errors


@pytest.mark.parametrize(("stage", "says"), [("eval", 0), ("fuse", 1)])
def test_an_error_is_printed_once_by_process_or_parent(context, capsys, stage, says):
    context.stage = STAGES[stage]
    assert work._failed(context, UserError("eval.json is damaged")) == BAD_INPUT
    assert capsys.readouterr().err.count("error: ") == says
    assert ending.verdict(context.dir, 1, None) == BAD_INPUT
    assert capsys.readouterr().err == "error: eval.json is damaged\n"


def test_the_parent_finds_the_reason_that_its_processes_could_not_write(
    directory, monkeypatch, capsys
):
    (directory / "logs").mkdir()
    full = UserError(f"{directory}: no room")
    monkeypatch.setattr(disk, "refusal", lambda _: full)
    monkeypatch.setattr(rundir, "append_line", refusing(errno.ENOSPC))
    assert ending.verdict(directory, 1, None) == BAD_INPUT
    assert capsys.readouterr().err == f"error: {directory}: no room\n"


def test_a_launch_finds_the_reason_that_its_stage_could_not_write(directory, monkeypatch):
    full = UserError(f"{directory}: no room")
    monkeypatch.setattr(disk, "refusal", lambda _: full)
    step = SimpleNamespace(dir=directory, stage=STAGES["eval"])
    with pytest.raises(UserError, match="no room"):
        local._explain(step, None, directory / "none.log", 1, stop_requested=False)


def test_the_check_of_a_writable_directory_leaves_no_file(tmp_path):
    assert disk.refusal(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_of_the_progress_does_not_end_the_stage(context, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_text", refusing(errno.ENOSPC))
    context.progress(1, 2)
    monkeypatch.setattr("pathlib.Path.write_text", refusing(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        context.progress(2, 2)


def test_a_clock_set_back_gives_no_negative_seconds(context):
    for moment, number in ((1000.0, 1), (900.0, 1), (4e9, 2)):
        row = {"time": moment, "event": "saved", "attempt": number}
        rundir.append_line(context.dir / rundir.EVENTS, row)
    context.attempt = 2  # attempt 2 began when the clock was far ahead
    assert work._seconds(context) == 0.0


def test_a_clock_set_back_gives_no_negative_gpu_hours():
    began = Event(event="began", gpus=4, time=3600.0)
    ended, before = Event(event="ended", time=7200.0), Event(event="ended", time=0.0)
    assert spent.gpu_hours([began, ended]) == 4
    assert spent.gpu_hours([began, before, began, ended, began, before]) == 4


@pytest.mark.parametrize("lost", ["", "\0" * 300, "\0" * 300 + "\n"])
def test_rows_after_a_power_cut_are_read(tmp_path, lost):
    """A power cut may leave a file with its new length, but without the new content."""
    row = '{"time": 1.0, "event": "started", "attempt": 1}\n'
    (tmp_path / rundir.EVENTS).write_text(row + lost)
    assert len(list(rundir.read_lines(tmp_path / rundir.EVENTS))) == 1
    rundir.append_line(tmp_path / rundir.EVENTS, {"time": 2.0, "event": "stopped", "attempt": 1})
    assert [event.event for event in store.events(tmp_path)] == ["started", "stopped"]


def test_the_cure_for_a_vanished_directory_is_to_restore_it(tmp_path):
    message = str(disk.refusal(tmp_path / "gone"))
    assert message.endswith("gone: No such file or directory; restore it and launch again")


def test_a_directory_with_only_the_newest_file_counts_as_vanished(tmp_path, capsys):
    end = End(rank=0, code=1)
    rundir.append_line(tmp_path / rundir.EVENTS, {"time": 1.0, "event": "saved", "attempt": 1})
    assert ending.verdict(tmp_path, 1, end) == BAD_INPUT
    assert capsys.readouterr().err.endswith("has vanished; restore it and launch again\n")
    step = SimpleNamespace(dir=tmp_path, stage=STAGES["train"])
    with pytest.raises(UserError, match="restore it and launch again"):
        local._explain(step, None, tmp_path / "none.log", 1, stop_requested=False)
    with pytest.raises(FileNotFoundError):
        attempt.check_owner(tmp_path, 1)


@pytest.mark.parametrize(("last", "begun"), [("eval", ["fuse"]), ("fuse", ["fuse"])])
def test_no_stage_starts_after_one_that_finished_despite_a_stop_request(
    directory, monkeypatch, last, begun
):
    names = ["fuse", "eval"][: ["fuse", "eval"].index(last) + 1]
    steps = [SimpleNamespace(dir=directory, stage=STAGES[n], runs=True) for n in names]
    ran = []
    monkeypatch.setattr(local, "_refuse_queued", lambda *_: None)
    monkeypatch.setattr(local, "verify_outputs", lambda _: None)
    monkeypatch.setattr(local, "_run", lambda step, *_: ran.append(step.stage.name) or True)
    config = SimpleNamespace(root=str(directory), name="x")
    with pytest.raises(Interrupted) if last == "eval" else nullcontext():
        local.run_local(steps, config)
    assert ran == begun


def test_a_cancel_during_the_start_of_a_launch_is_obeyed(directory, monkeypatch):
    """The launch removes the marks of its stages, as left by an earlier cancel, but heeds the run's mark."""
    step = SimpleNamespace(dir=directory, stage=STAGES["train"], runs=True)
    config = SimpleNamespace(root=str(directory), name="x")
    run = rundir.run_dir(directory, "x")
    run.mkdir(parents=True)

    def cancels(*_):
        for marked in (run, directory):
            rundir.write_text(marked / CANCELLED, "now")

    monkeypatch.setattr(local, "_refuse_queued", cancels)
    monkeypatch.setattr(local, "_run", lambda *_: pytest.fail("the cancelled stage was started"))
    with pytest.raises(Cancelled, match="train was cancelled before it began; to go on"):
        local.run_local([step], config)


@pytest.mark.parametrize("when", ["before", "while it runs"])
def test_of_two_simultaneous_launches_of_a_name_one_is_refused(directory, monkeypatch, when):
    """Both launches found the name unused, and the later one replaced the links of the run."""
    step = SimpleNamespace(dir=directory, stage=STAGES["train"], runs=True)
    config = SimpleNamespace(root=str(directory), name="x")
    link = rundir.run_dir(directory, "x") / "train"
    disk.link(link, directory)
    ran = []

    def run(*_):
        ran.append(when)
        disk.link(link, directory.with_name("train-of-the-other"))
        return False

    if when == "before":
        run()
    monkeypatch.setattr(local, "_refuse_queued", lambda *_: None)
    monkeypatch.setattr(local, "verify_outputs", lambda _: None)
    monkeypatch.setattr(local, "_run", run)
    with pytest.raises(UserError, match="run 'x' was launched with other settings at the same"):
        local.run_local([step], config)
    assert ran == [when]


@pytest.mark.parametrize("fails", ["note", "_wait"])
def test_a_launch_that_fails_while_a_stage_runs_stops_it(directory, monkeypatch, fails):
    """The launch ended with "make room and launch again", and the stage went on unattended."""
    begun = []

    def start(words, **how):
        del words
        begun.append(subprocess.Popen(["sleep", "60"], **how))
        return begun[0]

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "write_question", lambda _: None)
    monkeypatch.setattr(local, "write_where", lambda *_: None)
    monkeypatch.setattr(local, "subprocess", SimpleNamespace(Popen=start, STDOUT=-2, DEVNULL=-3))
    monkeypatch.setattr(local.store if fails == "note" else local, fails, fail)
    step = SimpleNamespace(dir=directory, stage=STAGES["train"], runs=True)
    with pytest.raises(OSError, match="No space left"):
        local._run(step, SimpleNamespace(root=str(directory), name="x"), None)
    assert begun[0].wait(10) == -signal.SIGTERM


def test_no_write_recreates_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        rundir.write_json(tmp_path / "gone" / "result.json", {})
    with pytest.raises(FileNotFoundError):
        rundir.append_line(tmp_path / "gone" / "events.jsonl", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("later", [OSError(errno.EROFS, "no"), UserError("no"), TypeError("no")])
@pytest.mark.parametrize("error", [UserError("the disk is full"), OSError(errno.ENOSPC, "full")])
def test_the_first_error_is_raised_if_the_report_fails_too(monkeypatch, error, later):
    def fail(*_):
        raise error

    monkeypatch.setattr(dispatch.local, "run_local", fail)

    def close(_):
        raise later

    monkeypatch.setattr(dispatch, "_close", close)
    this = SimpleNamespace(plan=[], config=None)
    with pytest.raises(type(error)) as raised:
        dispatch._run(this, [])
    assert raised.value is error


def test_a_cancelled_launch_prints_how_to_continue(tmp_path):
    step = SimpleNamespace(dir=tmp_path, stage=STAGES["train"])
    rundir.write_text(tmp_path / CANCELLED, "now")
    config = SimpleNamespace(name="x", root=str(tmp_path / "o"))
    with pytest.raises(Cancelled, match=f"to go on: .* name=x root={tmp_path}/o$"):
        local._explain(step, config, tmp_path / "none.log", 75, stop_requested=False)


def test_temporary_files_of_ended_processes_are_removed(directory):
    below = directory / "checkpoints"
    below.mkdir()
    left = [
        directory / ".attempt.a1b2c3_d",
        directory / ".progress.json.3",
        below / ".best.json.x1y2z3_4",
    ]
    kept = [directory / ".wandb.lock", directory / "notes", below / "best.json"]
    for path in left + kept:
        path.touch()
    old, new = directory / ".train.77", directory / ".fuse.78"
    for link in (old, new):
        link.symlink_to(below.name)
    os.utime(old, (0, 0), follow_symlinks=False)
    with disk.replacing(directory / "result.json") as living:
        attempt.claim(directory)
        living.write_text("whole")
    assert (directory / "result.json").read_text() == "whole"
    assert [path for path in left if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
    assert (old.is_symlink(), new.is_symlink()) == (False, True)


def test_a_launch_removes_temporary_files_of_a_killed_launch(tmp_path):
    config, choices, _ = named_run.settle(*sweep.single(["name=x", f"root={tmp_path}"]))
    left = rundir.run_dir(tmp_path, "x") / ".config.yaml.a1b2c3_d"
    left.parent.mkdir(parents=True)
    left.touch()
    named_run.record(config, choices, [])
    assert not left.exists()
