"""Test `loaders.workers`: worker processes that die, are slow, or find no shared memory."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data.loaders import workers
from pipeline.data.loaders.choose import make
from pipeline.display.errors import Interrupted, UserError
from tests.pipeline.data.loaders.loading import same, spec

pytestmark = pytest.mark.long


class Items(Dataset):
    """A data set of four items, whose items call a function in the worker if one is given."""

    def __init__(self, what):
        self.what = what

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return self.what() if self.what else torch.zeros(2)


def dies(number):
    return lambda: os.kill(os.getpid(), number)


def no_room():
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")


def working(what, waiting=lambda seconds: None):
    return workers.batches(
        DataLoader(Items(what), num_workers=1, timeout=1, multiprocessing_context="fork"), waiting
    )


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (dies(signal.SIGKILL), "a worker process of data.loader=torch ended: .*Killed"),
        (dies(signal.SIGBUS), "/dev/shm is full"),
        (no_room, "/dev/shm is full, a batch did not fit in; .*--shm-size"),
    ],
)
def test_the_end_of_a_worker_is_reported_with_its_reason(what, words):
    with pytest.raises(UserError, match=words) as error:
        list(working(what))
    assert "\n" not in str(error.value)


def test_a_worker_killed_during_a_step_is_reported_at_the_next_batch():
    others = set(multiprocessing.active_children())  # workers of earlier tests
    left = working(lambda: time.sleep(0.3) or torch.zeros(2))
    next(left)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.2)  # stands for the step, which does not fail
    with pytest.raises(UserError, match=r"ended: Killed \(signal 9\); launch again to continue"):
        list(left)


def test_a_stop_request_ends_the_wait_for_a_batch():
    def leave(seconds):
        raise Interrupted(f"{seconds:.0f}")

    with pytest.raises(Interrupted):
        list(working(lambda: time.sleep(60), leave))


def test_a_batch_that_comes_late_is_waited_for():
    looks = []
    late = working(lambda: time.sleep(1.2) or torch.zeros(2), looks.append)
    assert next(late).shape == (1, 2) and looks


@pytest.mark.parametrize(("free", "expected"), [(10**9, 4), (3 * 10**7, 4), (10**7, 3), (0, 0)])
def test_shared_memory_limits_the_number_of_workers(monkeypatch, capsys, free, expected):
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    workers._say.cache_clear()
    for _ in range(2):
        assert workers.affordable(4, 10**6, neighbours=1) == expected
    output = capsys.readouterr().out
    assert output.count("\n") == (expected < 4)
    assert (f"{expected} are used" in output) == (expected < 4)
    assert workers.affordable(4, 10**6, neighbours=8) <= expected


def test_batches_are_the_same_without_shared_memory(data, tmp_path, monkeypatch):
    own = spec(data)
    enough = list(make("torch", own))
    monkeypatch.setattr(workers, "SHARED", tmp_path / "nowhere")
    assert all(same(one, two) for one, two in zip(enough, make("torch", own), strict=True))
