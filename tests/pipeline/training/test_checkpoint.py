"""Test `training.checkpoint` and `training.saver`: save, load, skip, prune, and when to save."""

import json
import random
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.config.train import Checkpoint
from pipeline.records import disk, rundir
from pipeline.training import checkpoint, generators
from pipeline.training.checkpoint import CheckpointInfo
from pipeline.training.saver import Saver


def info(step, epoch=0, attempt=1, boundary=False):
    return CheckpointInfo(
        step=step, epoch=epoch, attempt=attempt, world_size=2, boundary=boundary, history=step, growth=0, identity={}
    )  # fmt: skip


def write(folder, step, state=None, **kind):
    taken = checkpoint.snapshot(state or {"step": step})
    return checkpoint.save(folder, info(step, **kind), taken)


def newest(folder):
    path, passed_over = checkpoint.newest(folder, lambda _: None, lambda _: None)
    return path, [str(item) for item in passed_over]


def names(folder):
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
def test_a_state_comes_back_as_it_was(tmp_path, optimizer):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    optimizer = optimizer(model.parameters(), lr=0.1)
    optimizer.step(lambda: model(torch.ones(2, 3, 8, 8)).sum())
    state = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": generators.state(),
        "values": {"none": None, 3: (1, 2.5, "x"), "flag": True, "empty": [], "inf": 1e400},
        "half": torch.ones(3, dtype=torch.bfloat16), "bytes": torch.arange(5, dtype=torch.uint8),
    }  # fmt: skip
    path = write(tmp_path, 7, state)
    assert same({**state, "model": dict(state["model"])}, checkpoint.load(path))


def test_a_snapshot_does_not_follow_the_training():
    weight = torch.ones(3)
    taken = checkpoint.snapshot({"weight": weight})
    weight.zero_()
    assert taken.tensors["weight"].tolist() == [1, 1, 1]


def test_a_value_that_no_checkpoint_can_hold_is_named():
    with pytest.raises(TypeError, match=r"a\.0\.b is a set"):
        checkpoint.snapshot({"a": [{"b": {1}}]})


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
        (flip, "content differs from its seal"),
        (lambda path: path.with_suffix(".json").write_text("{"), "seal cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{}"), "seal cannot be read"),
    ],
    ids=["truncated", "bit flipped", "seal cut off", "seal of something else"],
)
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path, harm, message):
    older, newer = write(tmp_path, 10), write(tmp_path, 20)
    harm(newer)
    path, damaged = newest(tmp_path)
    assert path == older
    assert damaged[0].startswith(newer.name) and message in damaged[0]


def test_a_file_of_another_program_is_named_and_skipped(tmp_path):
    older, newer = write(tmp_path, 10), write(tmp_path, 20)
    save_file({"x": torch.ones(2)}, newer)
    seal = json.loads(newer.with_suffix(".json").read_text())
    seal |= {"bytes": newer.stat().st_size, "sha256": disk.sha256(newer)}
    newer.with_suffix(".json").write_text(json.dumps(seal))
    path, damaged = newest(tmp_path)
    assert path == older
    assert "is not a checkpoint of this program" in damaged[0]


def test_a_checkpoint_without_a_seal_is_ignored(tmp_path):
    older, newer = write(tmp_path, 10), write(tmp_path, 20)
    newer.with_suffix(".json").unlink()
    assert newest(tmp_path) == (older, [])


def test_a_newer_attempt_counts_more_than_a_later_step(tmp_path):
    stale, current = write(tmp_path, 90, attempt=1), write(tmp_path, 50, attempt=2)
    assert newest(tmp_path)[0] == current
    assert stale.exists()


def test_checkpoints_before_and_after_a_change_of_structure_are_two_files(tmp_path):
    before, after = write(tmp_path, 20, epoch=1), write(tmp_path, 20, epoch=2)
    assert before != after
    assert newest(tmp_path)[0] == after


def test_the_newest_the_best_and_the_last_between_epochs_are_kept(tmp_path):
    best = write(tmp_path, 10, boundary=True)
    write(tmp_path, 20, boundary=True)
    write(tmp_path, 30, boundary=True)
    for step in (31, 32, 33, 34):
        write(tmp_path, step)
    checkpoint.mark_best(tmp_path, best.name, 1, 50.0)
    checkpoint.mark_best(tmp_path, "step-00000020-e000-a001.safetensors", 2, 49.0)
    checkpoint.prune(tmp_path, 2)
    kept = [int(name.split("-")[1]) for name in names(tmp_path)]
    assert kept == [10, 30, 33, 34]
    assert {path.stem for path in tmp_path.glob("step-*.json")} == set(names(tmp_path))


def test_a_copy_that_a_user_made_is_left_alone(tmp_path):
    path = write(tmp_path, 10)
    for name in ("step-00000010-e000-a001 (copy)", "step-00000010-e000-a001.old", "step-x-e-a"):
        (tmp_path / f"{name}.safetensors").write_bytes(path.read_bytes())
    assert newest(tmp_path) == (path, [])
    checkpoint.prune(tmp_path, 1)
    assert len(names(tmp_path)) == 4


def test_generators_continue_where_they_were():
    generators.seed(3)
    saved = generators.state()
    drawn = [random.random(), np.random.rand(), torch.rand(1).item()]
    generators.restore(saved)
    assert drawn == [random.random(), np.random.rand(), torch.rand(1).item()]


class Clock:
    """A `Saver` with a clock that the test moves."""

    def __init__(self, monkeypatch, folder, interval):
        self.now, self.announced = 1000.0, []
        monkeypatch.setattr("pipeline.training.saver.time.monotonic", lambda: self.now)
        settings = Checkpoint(interval=interval, keep=2, interruption_hours=1.0)
        self.saver = Saver(
            folder, settings, lambda: None, lambda f, s: self.announced.append(f.step)
        )

    def due_after(self, seconds, steps=0):
        self.now += seconds
        return self.saver.due(steps)


def test_the_interval_counts_steps(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path, "10 steps")
    assert not clock.due_after(1e6, steps=9)
    assert clock.due_after(0, steps=10)


def test_the_interval_counts_minutes(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path, "2 minutes")
    assert not clock.due_after(119, steps=10**6)
    assert clock.due_after(1)


def test_the_automatic_interval_follows_the_cost_of_saving(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path, "auto")

    def slow(*arguments):
        clock.now += 2.0

    monkeypatch.setattr("pipeline.training.saver.checkpoint.save", slow)
    clock.saver.save(info(1), {})
    clock.saver.wait()
    written = clock.now
    assert clock.announced == [1]
    clock.now = written + 190
    assert not clock.saver.due(1)
    clock.now = written + 200  # 1 % of the time, longer than sqrt(2 * 2 s * 1 h) = 120 s
    assert clock.saver.due(1)


class Disk:
    """A stand-in for the `may_write` of a `Saver` that fails a given number of times."""

    def __init__(self, refusals):
        self.refusals = refusals

    def __call__(self):
        if self.refusals:
            self.refusals -= 1
            raise OSError("no room")


def saver_on(folder, disk):
    settings = Checkpoint(interval="1000 steps", keep=2, interruption_hours=1.0)
    return Saver(folder, settings, disk, lambda *_: None)


def test_a_save_that_failed_is_due_again_at_once(tmp_path):
    saver = saver_on(tmp_path, Disk(1))
    saver.save(info(1), {})
    while not saver.due(1):
        time.sleep(0.01)
    saver.save(info(2), {})
    assert names(tmp_path) == ["step-00000002-e000-a001"]
    assert not saver.due(2)


def test_a_second_failed_save_ends_the_training(tmp_path):
    saver = saver_on(tmp_path, Disk(2))
    saver.save(info(1), {})
    with pytest.raises(OSError, match="no room"):
        saver.save(info(2), {})
    saver.wait()  # does not raise the same error again


def test_attempts_and_epochs_are_ordered_as_numbers(tmp_path):
    write(tmp_path, 5, epoch=999, attempt=999)
    newer = write(tmp_path, 5, epoch=1000, attempt=1000)
    assert newest(tmp_path)[0] == newer
    checkpoint.prune(tmp_path, 1)
    assert names(tmp_path) == [newer.stem]


def test_a_file_that_a_kill_left_half_written_is_removed(tmp_path):
    kept = write(tmp_path, 5)
    (tmp_path / ".step-00000006-e000-a001.safetensors.abc").write_bytes(b"half")
    checkpoint.tidy(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([kept, kept.with_suffix(".json")])


@pytest.mark.parametrize("content", ["", "{}", '{"file": "gone", "epoch": 1, "top1": 99}'])
def test_a_useless_note_of_the_best_checkpoint_is_replaced(tmp_path, content):
    path = write(tmp_path, 5)
    (tmp_path / "best.json").write_text(content)
    checkpoint.prune(tmp_path, 1)
    checkpoint.mark_best(tmp_path, path.name, 1, 50.0)
    assert rundir.read_json(tmp_path / "best.json")["file"] == path.name


def test_a_skipped_checkpoint_is_never_used_again(tmp_path):
    older, newer = write(tmp_path, 10), write(tmp_path, 20)
    path, passed_over = checkpoint.newest(
        tmp_path, lambda _: None, lambda f: "no" if f.step == 20 else None
    )
    assert (path, [item.path for item in passed_over]) == (older, [newer])
    checkpoint.unseal(passed_over)
    assert newest(tmp_path) == (older, [])
