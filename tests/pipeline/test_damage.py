"""Test that each command names a damaged file with the cure, and still shows all other runs."""

import itertools
import json
import os
import shutil
import socket
import types

import pytest
import yaml

from pipeline import cancel, launch, logs, status, sync
from pipeline.compare import __main__ as compare
from pipeline.display import exits
from pipeline.display.errors import UserError
from pipeline.execution import local
from pipeline.planning import compose, named_run, sweep
from pipeline.planning.plan import make_plan
from pipeline.records import rundir
from pipeline.records.schemas import Attempt
from pipeline.report import run_data
from slurm import files
from tests import runs as fabricated
from tests.launcher import no_longer_than

pytestmark = pytest.mark.long

METRICS = {
    "prep": {"train_images": 1437, "val_images": 360, "quarantined": 0, "copies": 0,
             "contradictions": 0, "alike": 0, "odd_files": 0, "ignored_files": 0},
    "train": {"top1": 90.0, "loss": 0.1, "epochs": 2, "steps": 6, "grown": 1, "cut": 0},
    "fuse": {"parameters": 3e5, "parameters_unfused": 4e5, "max_rel_error": 1e-15, "exports": 1,
             "exports_missing": 0},
    "eval": {"fused/top1": 90.0, "unfused/top1": 90.0, "agreement": 100.0, "images": 360},
}  # fmt: skip
OUTPUT = {"outputs": {}, "environment": {"device": "CPU"}, "attempts": 1, "seconds": 1.0}
WAITING = "latency"  # the unfinished stage


def wrong(value):
    """Return a value with the same keys, and values of another type."""
    if isinstance(value, dict):
        return {key: wrong(inner) for key, inner in value.items()}
    return "x" if isinstance(value, int | float | list) or value is None else 7


def text(content):
    return lambda path: path.write_bytes(content)


def typed(path):
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(wrong(row)) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(wrong(yaml.safe_load(path.read_text()))))


def numbers(number):
    """Return a function that replaces each number in a file by the given JSON text."""

    def damage(path):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        rows = [json.dumps(_with_marks(yaml.safe_load(line))) for line in lines]
        path.write_text("".join(f"{row}\n" for row in rows).replace('"#"', number))

    return damage


def _with_marks(value):
    if isinstance(value, dict):
        return {key: _with_marks(inner) for key, inner in value.items()}
    return "#" if isinstance(value, int | float) and not isinstance(value, bool) else value


def half(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def instead(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


DAMAGES = {
    "null": text(b"null\n"), "list": text(b"[]\n"), "mapping": text(b"{}\n"), "number": text(b"7\n"),
    "no UTF-8": text(b'{"a": "\xff"}\n'), "zeros": text(b"\0" * 64 + b"\n"),
    "huge": text(b'{"attempt": ' + b"1" * 5000 + b"}\n"), "deep": text(b"[" * 100_000 + b"\n"),
    "no JSON": text(b'{"a": \n'), "empty": text(b""), "half": half, "types": typed,
    "infinite": numbers("1e999"), "endless": numbers("1" * 400), "far": numbers("9e11"),
    "directory": instead(lambda path: path.mkdir()), "FIFO": instead(os.mkfifo),
    "no target": instead(lambda path: path.symlink_to("nowhere")),
    "loop": instead(lambda path: path.symlink_to(path.name)),
    "device": instead(lambda path: path.symlink_to("/dev/zero")),
    "socket": instead(lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))),
}  # fmt: skip
FILES = (
    "config.yaml", "run.json", "train/result.json", "fuse/result.json", "train/events.jsonl",
    "train/history.jsonl", "train/growth.jsonl", f"{WAITING}/events.jsonl",
    f"{WAITING}/jobs.jsonl", f"{WAITING}/attempt", f"{WAITING}/progress.json",
)  # fmt: skip
READ = {  # files that each command needs, and therefore names if they are damaged
    "status": {"run.json", "train/result.json", "fuse/result.json", "train/events.jsonl",
               f"{WAITING}/events.jsonl", f"{WAITING}/jobs.jsonl", f"{WAITING}/attempt"},
    "compare": {"run.json", "config.yaml", "train/result.json", "fuse/result.json",
                f"{WAITING}/events.jsonl", f"{WAITING}/attempt"},
    "launch": {"run.json", "config.yaml", "train/result.json", "fuse/result.json",
               f"{WAITING}/events.jsonl"},
    "cancel": {"train/result.json", "fuse/result.json", f"{WAITING}/events.jsonl",
               f"{WAITING}/attempt"},
}  # fmt: skip
NO_DAMAGE = {("config.yaml", "half")} | {
    (file, damage) for file in FILES if file.endswith(".jsonl") for damage in ("empty", "half", "zeros")
} | {(f"{WAITING}/jobs.jsonl", "mapping")} | {
    ("run.json", damage) for damage in ("infinite", "endless", "far")  # run.json has no number
} | {(file, "far") for file in ("train/result.json", "fuse/result.json")}  # fmt: skip


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Return a root with two runs whose latency is unfinished, and the launch of each."""
    root = tmp_path_factory.mktemp("damage") / "o"
    configs = {name: _fabricate(root, name, seed) for seed, name in enumerate(("good", "bad"))}
    return root, configs


def _fabricate(root, name, seed):
    asked = [f"name={name}", f"seed={seed}", "group=g", "tracking=disabled", f"root={root}"]
    tree, choices, _ = sweep.single(asked)
    config = compose.to_config(tree, choices, asked)
    plan = make_plan(config)
    run = named_run.record(config, choices, plan)
    (run / "report.html").touch()
    for step in plan:
        step.dir.mkdir(parents=True, exist_ok=True)
        named_run.write_question(step)
        event = {"time": 1.0, "event": "started", "attempt": 1}
        rundir.append_line(step.dir / rundir.EVENTS, event)
        rundir.append_line(step.dir / rundir.JOBS, {"time": 1.0, "executor": "local", "run": name})
        owner = {"attempt": 1, "pid": 1, "host": "gone", "time": 1.0, "job": None}
        rundir.write_json(step.dir / Attempt.FILE, owner)
        if step.stage.name in METRICS:
            parents = {p: f"{p}-{step.question.parents[p]}" for p in step.stage.parents}
            result = {**OUTPUT, "metrics": METRICS[step.stage.name], "parents": parents}
            rundir.write_json(step.dir / rundir.RESULT, result)
    progress = {"done": 1, "total": 2, "text": "", "time": 1.0, "saved": 0}
    rundir.write_json(run / WAITING / rundir.PROGRESS, progress)
    fabricated._curves((run / "train").resolve(), (50.0, 80.0), 3)
    return tree, choices, asked


def launched(run):
    return exits.result_or_code(
        lambda: launch.launch(run, named_run.settle(*run), frozenset()).code, ""
    )


@pytest.fixture
def world(pristine, tmp_path, monkeypatch):
    """Return the root, restored after the test, with stand-ins for processes, SLURM and W&B."""
    root, configs = pristine
    kept = root.with_name("kept")
    if not kept.exists():
        shutil.copytree(root, kept, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(local.subprocess, "Popen", _began)
    monkeypatch.setattr(launch.preflight, "check", lambda *_: None)
    monkeypatch.setattr("pipeline.planning.named_run.source_revision", lambda: {"revision": "abc"})
    monkeypatch.setattr("pipeline.planning.named_run.versions", dict)
    monkeypatch.setattr(
        "pipeline.execution.after_stage.close", lambda run, tracked: run_data.read(run)
    )
    monkeypatch.setattr(sync, "unreachable", lambda server: None)
    monkeypatch.setattr(sync, "_check_key", lambda: None)
    done = types.SimpleNamespace(returncode=0, stdout="", stderr="")
    monkeypatch.setattr(sync.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr("pipeline.records.stage_status.queued", lambda *paths: (None, ""))
    monkeypatch.setattr("slurm.scheduler.user_jobs", dict)
    yield root, configs
    shutil.rmtree(root)
    shutil.copytree(kept, root, symlinks=True)


def _began(*_, **__):
    raise local.StageFailed("began")


@pytest.mark.parametrize(("file", "damage"), list(itertools.product(FILES, DAMAGES)))
def test_a_damaged_file_is_named_and_the_others_are_shown(file, damage, world, capsys):
    root, configs = world
    path = (root / "runs" / "bad" / file).parent.resolve() / file.rpartition("/")[2]
    os.chdir(path.parent)
    DAMAGES[damage](path)
    where = ["--root", str(root)]
    commands = {
        "status": lambda: status.main(where),
        "status of it": lambda: status.main(["bad", "--json", *where]),
        "compare": lambda: compare.main(["--group", "g", *where]),
        "launch": lambda: launched(configs["bad"]),
        "launch of another": lambda: launched(configs["good"]),
        "logs": lambda: logs.main(["bad", WAITING, *where]),
        "sync": lambda: sync.main(where),
        "cancel": lambda: cancel.main(["bad", *where]),
    }
    codes = {"status": {0}, "status of it": {0}, "compare": {0}, "launch of another": {1},
             "launch": {1, 2}, "cancel": {0, 2}, "logs": {0, 2}, "sync": {0, 1}}  # fmt: skip
    for name, command in commands.items():
        with no_longer_than(20):
            code = command()
        printed = capsys.readouterr()
        errors = printed.out + printed.err
        assert code in codes[name], (name, errors)
        assert "Traceback" not in errors
        assert "began" in errors or name != "launch of another", errors
        if name in ("status", "compare"):
            assert "good" in errors
        if file in READ.get(name, ()) and (file, damage) not in NO_DAMAGE:
            lines = [line for line in errors.splitlines() if path.name in line]
            assert any("damaged" in line for line in lines), (name, errors)
            assert code == {"status": 0, "compare": 0}.get(name, 2)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "1" * 400])
def test_a_result_with_numbers_that_are_not_finite_is_shown_or_named(world, capsys, number):
    root, configs = world
    for stage in METRICS:
        path = root / "runs" / "bad" / stage / rundir.RESULT
        result = json.loads(path.read_text())
        marked = {**result, "metrics": _with_marks(result["metrics"])}
        path.write_text(json.dumps(marked).replace('"#"', number))
    for main in (status.main, compare.main):
        assert main(["bad", "good", "--root", str(root)]) == 0
        printed = capsys.readouterr()
        assert "good" in printed.out and "Traceback" not in printed.out + printed.err
    assert launched(configs["bad"]) == 2  # the launch needs the number of images
    assert "result.json is damaged" in capsys.readouterr().err


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "opened", refuse)
    (tmp_path / "run.json").touch()
    with pytest.raises(UserError, match=r"run.json cannot be read \(Permission denied\); make it"):
        rundir.read_json(tmp_path / "run.json")


def test_the_cure_removes_no_more_than_it_must(tmp_path):
    for name, cure in {
        "result.json": f"remove {tmp_path}/result.json and launch again",
        "attempt": f"remove {tmp_path} to start over",
    }.items():
        (tmp_path / name).write_text("null")
        with pytest.raises(UserError, match=cure):
            rundir.read_json(tmp_path / name)
    (tmp_path / "events.jsonl").write_text('{"event": "started", "time": 1.0}\nspoilt\n')
    with pytest.raises(UserError, match=r"line 2 is damaged .* remove that line"):
        list(rundir.read_lines(tmp_path / "events.jsonl"))


def test_a_run_without_permission_is_named(world, capsys, monkeypatch):
    """Stand-ins for the calls that read files refuse the run, because root may read any folder."""
    root, _ = world
    closed, look, read = root / "runs" / "bad", type(root).lstat, files.opened

    def refuse(path, call):
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return call(path)

    monkeypatch.setattr(type(root), "lstat", lambda path: refuse(path, look))
    monkeypatch.setattr(files, "opened", lambda path: refuse(path, read))
    assert status.main(["--root", str(root)]) == 0
    output = capsys.readouterr().out
    assert f"{closed}/run.json cannot be read (Permission denied); make it readable" in output
    assert "good" in output and "damaged" in output


def test_a_log_that_is_a_fifo_is_refused_without_waiting(world, capsys):
    root, _ = world
    log = rundir.log_file(root / "runs" / "bad" / WAITING, 1)
    log.parent.mkdir()
    os.mkfifo(log)
    with no_longer_than(60):
        assert logs.main(["bad", WAITING, "--root", str(root)]) == 2
    assert log.name in capsys.readouterr().err
