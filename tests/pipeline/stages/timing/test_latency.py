"""Test the stage `latency`: how it times networks, and when it reports its times as noisy."""

import hashlib
import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from pipeline.config import sections
from pipeline.display.errors import UserError
from pipeline.records import rundir
from pipeline.stages import eval as evaluation
from pipeline.stages import latency
from pipeline.stages.timing import machine, measure, memory
from pipeline.stages.timing.interference import Neighbours, watched
from pipeline.stages.timing.measure import Paced, Timing
from pipeline.stages.timing.variants import Unavailable, Variant, infer, make

pytestmark = pytest.mark.long

CORES = len(os.sched_getaffinity(0))
STEADY = {"fused/b1": Timing([1.0] * 20)}


@contextmanager
def busy_neighbours():
    """Keep each core busy by a child process, which counts as another process until it has ended."""
    spin = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    processes = [subprocess.Popen(spin, stdout=subprocess.PIPE) for _ in range(CORES)]
    for process in processes:
        process.stdout.readline()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_other_busy_processes_are_noticed():
    with busy_neighbours(), watched() as found:
        time.sleep(1)
    assert found.others > 0.5
    (reason,) = latency._noise(Neighbours(found.others), STEADY)
    assert reason.startswith("other processes used") and reason.endswith("% of these cores")


def test_the_work_of_this_process_does_not_count_as_that_of_others():
    """The test uses all cores: its time, if counted as another's, would be counted twice."""

    def work():
        while time.monotonic() < begun + 1:
            hashlib.sha256(bytes(2**20))  # releases Python's lock, so that each thread uses a core

    used, begun = time.process_time(), time.monotonic()
    with watched() as found, ThreadPoolExecutor(CORES) as pool:
        for _ in range(CORES):
            pool.submit(work)
        pool.shutdown()
    own = (time.process_time() - used) / (time.monotonic() - begun) / CORES
    if own < 0.5:
        pytest.skip("a busy machine leaves this process less than half of its cores")
    assert found.others < 1.1 - own


@pytest.mark.parametrize(
    ("neighbours", "seconds", "words"),
    [
        (Neighbours(stolen=0.03), [1.0] * 20, "the host took 3% of their time away"),
        (Neighbours(), [1.0] * 10 + [1.2] * 10, "times drifted by 20%"),
        (Neighbours(), [1.0, 1.0, 1.0, 5.0] * 5, "one in ten took 5.0 times the median"),
    ],
)
def test_each_reason_for_noisy_times_is_named(neighbours, seconds, words):
    (reason,) = latency._noise(neighbours, {**STEADY, "plain/b8": Timing(seconds)})
    assert words in reason


def test_steady_times_on_a_quiet_machine_are_not_noisy():
    assert not list(latency._noise(Neighbours(others=0.04, stolen=0.01), STEADY))


CPU = torch.device("cpu")


@pytest.mark.parametrize("stage", [latency, evaluation])
def test_eval_and_latency_compute_float32_without_tf32(stage):
    """Convolutions on a GPU use TF32 unless the stage disables it."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    settings = SimpleNamespace(
        latency=SimpleNamespace(threads=torch.get_num_threads(), batch_sizes=[1]), eval=None,
        data=SimpleNamespace(channels=3, image_size=8, short_side=8, loader="memory"),
    )  # fmt: skip
    with pytest.raises(
        UserError, match="nowhere"
    ):  # the stage sets the precision before it looks for data
        stage.run(SimpleNamespace(config=settings, parents={"prep": Path("nowhere")}))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_probe_computes_the_same_whenever_it_is_made():
    first = machine.probe(CPU)()
    torch.manual_seed(99)
    assert torch.equal(first, machine.probe(CPU)())


def test_a_warm_up_that_does_not_converge_is_reported(monkeypatch):
    monkeypatch.setattr(measure, "PATIENCE", 0.01)
    monkeypatch.setattr(measure, "WINDOW_SECONDS", 0.0)
    times = itertools.cycle([1.0] * measure.WINDOW_CALLS + [2.0] * measure.WINDOW_CALLS)
    monkeypatch.setattr(measure, "seconds", lambda *_: next(times))
    assert not measure.warm_up(lambda: None, CPU)
    timing = Timing([1.0] * 20, stable=False)
    (reason,) = latency._noise(Neighbours(), {"fused/b1": timing})
    assert "the warm-up did not converge" in reason and "fused/b1" in reason


class Clock:
    """A stand-in for the module `time` in which only `sleep` takes time, whatever the machine does."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


def test_slow_first_calls_are_not_timed(clock, monkeypatch):
    monkeypatch.setattr(measure, "WINDOW_SECONDS", 0.05)
    left = [4]

    def cold_at_first():
        left[0] -= 1
        clock.sleep(0.03 if left[0] >= 0 else 0.002)

    *_, found = measure.interleaved({"x": cold_at_first}, 10, CPU)
    assert found["x"].stable
    assert found["x"].seconds == pytest.approx([0.002] * 10)


def test_a_machine_that_is_too_noisy_is_given_up(monkeypatch):
    monkeypatch.setattr(measure, "WINDOW_SECONDS", 0.0)
    asked = iter([False, True, False, True])  # asked at both warm-ups, and from round 6 on
    calls = {"x": lambda: None, "y": lambda: None}
    *_, found = measure.interleaved(calls, 60, CPU, vain=lambda: next(asked))
    assert [len(timing.seconds) for timing in found.values()] == [6, 6]
    assert not found["y"].stable


@pytest.mark.parametrize(
    ("others", "seconds", "vain"), [(0.3, 61.0, True), (0.3, 59.0, False), (0.04, 600.0, False)]
)
def test_timing_is_given_up_after_a_noisy_minute(others, seconds, vain):
    found = SimpleNamespace(others=others, stolen=0.0, seconds=seconds, update=lambda: None)
    assert latency._vain(found) is vain


def test_confidence_intervals_contain_the_true_median():
    """95 % of the intervals of the median of 40 exponential times hold the true median."""
    draw = torch.Generator().manual_seed(0)
    true, hits = torch.log(torch.tensor(2.0)).item(), 0
    for _ in range(400):
        times = torch.empty(40).exponential_(generator=draw).tolist()
        low, high = Timing(times).interval(50)
        hits += low <= true <= high
    assert 0.93 <= hits / 400 <= 1


def test_few_calls_give_no_upper_bound_of_the_99th_percentile():
    assert Timing([0.1 * i for i in range(60)]).interval(99)[1] is None
    assert Timing([0.1 * i for i in range(400)]).interval(99)[1] is not None


def test_an_open_loop_counts_the_time_in_the_queue(clock):
    paced = Paced(rate=100)
    # calls take twice as long as the time between them
    *_, timing = paced.run(lambda: clock.sleep(0.02), 10, CPU)
    assert timing.seconds == pytest.approx([0.02 + 0.01 * number for number in range(10)])
    idle = Paced(rate=50)
    *_, timing = idle.run(lambda: None, 5, CPU)
    assert timing.seconds == pytest.approx([0.0] * 5)


@pytest.mark.parametrize("limit", [0, 1, 37, 99])
def test_the_largest_batch_is_found_by_bisection(limit):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= limit

    assert memory.largest_batch(fits, 0, 100) == limit
    assert len(tried) <= 7


def test_an_error_of_memory_is_distinguished_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert memory.exceeded(caught.value)
    assert not memory.exceeded(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_batch_beyond_the_memory_is_left_out_and_the_largest_is_reported(capsys):
    """A function that raises torch's own error stands in for a network whose activations do not fit."""

    def hungry(images):
        if len(images) > 37:
            torch.empty(2**62, dtype=torch.uint8)
        return images.flatten(1)[:, :4]

    settings = SimpleNamespace(repeats=10, batch_sizes=[8, 64, 32], also=[])
    reported = []
    context = SimpleNamespace(
        config=SimpleNamespace(latency=settings),
        check_stop=lambda: None, progress=lambda *words: reported.append(words),
    )  # fmt: skip
    bench = latency._Bench(
        context,
        latency._Way(context),
        torch.rand(8, 3, 4, 4),
        {
            "fused": Variant(lambda images: images.flatten(1)[:, :4], 0.1, True, "cpu"),
            "unfused": Variant(hungry, 0.1, True, "cpu"),
        },
        skipped={},
    )  # fmt: skip
    bench.time(lambda: False)
    steps, rounds = [words for words in reported if words[1] == 0], [w for w in reported if w[1]]
    assert [words[2].rpartition(" (")[2] for words in steps] == [f"{n} of 13)" for n in range(1, 8)]
    assert [words[:2] for words in rounds] == [(n, 20) for n in range(1, 11)]
    etas = [words[3] for words in rounds]
    assert etas[0] is None and etas[-1] == 0 and all(eta > 0 for eta in etas[1:-1])
    assert bench.largest == {"unfused": 37}
    assert set(bench.timings) == {"fused/b8", "unfused/b8", "fused/b64", "fused/b32", "unfused/b32"}
    assert "unfused: no memory for batch 64; 37 is the largest" in capsys.readouterr().out
    assert bench.agreements() == {}
    bench.check()
    nothing = replace(bench, timings={}, largest={"fused": 3})
    with pytest.raises(UserError, match="the largest that fits is 3"):
        nothing.check()


def raising(words):
    def network(_):
        raise RuntimeError(words)

    return network


def test_a_variant_that_cannot_run_names_the_reason(finished, monkeypatch):
    run = finished.root / "runs" / "small"
    context = SimpleNamespace(
        parents={"fuse": run / "fuse", "train": run / "train", "prep": run / "prep"},
        config=sections(yaml.safe_load((run / "latency" / rundir.STAGE).read_text())["config"]),
    )
    image = torch.zeros(1, 1, 16, 16)
    with pytest.raises(Unavailable, match=r"model.ts was not exported; see fuse.exports"):
        make(context, "torchscript", image)
    with pytest.raises(Unavailable, match="it needs an NVIDIA GPU"):
        make(context, "cuda_graphs", image)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: raising("no Python.h\nand a page more"))
    with pytest.raises(Unavailable, match=r"it cannot be compiled: RuntimeError: no Python.h$"):
        make(context, "compiled", image)
    fused = make(context, "fused", image)
    half = make(context, "bfloat16", image)
    scores = infer(half.network, image)
    assert scores.dtype is torch.float32
    torch.testing.assert_close(infer(fused.network, image), scores, rtol=0.05, atol=0.1)


def test_the_peak_memory_of_a_call_excludes_earlier_allocations():
    held = torch.ones(20 * 2**20, dtype=torch.uint8)
    found = memory.peak(lambda: torch.ones(50 * 2**20, dtype=torch.uint8).max(), CPU)
    if found is None:
        pytest.skip("this kernel does not report the peak memory")
    assert 45 < found < 60
    assert len(held)
