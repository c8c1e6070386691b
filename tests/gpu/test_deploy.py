"""Test exported files and timing on a CUDA device; without one, the tests are skipped."""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.stages import latency
from pipeline.stages.export import runtime
from pipeline.stages.export.formats import Source
from pipeline.stages.export.write import write
from pipeline.stages.timing import machine, measure, memory
from pipeline.stages.timing.variants import Variant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["pt2", "torchscript", "aotinductor"])
def test_an_exported_file_runs_on_the_device_of_its_images(tmp_path, name):
    images = torch.randn(8, 3, 32, 32)
    source = Source(network=network(), images=images, card="{}", opset=18)
    ((_, outcome),) = write(source, tmp_path, [name], images)
    if "ended by signal" in outcome.get("failed", ""):  # torch 2.11 dies as it loads the file
        assert not list(tmp_path.iterdir())
        pytest.skip(outcome["failed"])
    run, device = runtime.load(tmp_path / outcome["file"], trust=True)
    assert runtime.card(tmp_path / outcome["file"]) == "{}"
    assert device == ("cuda" if name == "aotinductor" else None)
    with torch.inference_mode():
        for device in ("cuda", "cpu"):
            scores = run(images.to(device))
            assert scores.device.type == device
            torch.testing.assert_close(scores.cpu(), network()(images), rtol=1e-3, atol=1e-3)


def test_the_time_of_a_call_includes_the_work_of_the_device():
    """Without synchronising, a matrix product of milliseconds would seem to end at once."""
    matrix = torch.randn(8192, 8192, device=CUDA)
    measure.warm_up(lambda: matrix @ matrix, CUDA)
    assert measure.seconds(lambda: matrix @ matrix, CUDA) > 1e-3


def test_the_peak_memory_of_a_call_is_read_from_the_allocator():
    found = memory.peak(lambda: torch.ones(64 * 2**20, dtype=torch.uint8, device=CUDA), CUDA)
    assert found == pytest.approx(64, abs=1)


def test_a_batch_beyond_the_memory_is_recognized_by_its_error():
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2 * free, dtype=torch.uint8, device=CUDA)
    assert memory.exceeded(caught.value)


def test_the_largest_batch_is_found_with_errors_of_the_allocator():
    _, whole = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**30 / whole)
    try:
        wide = nn.Conv2d(3, 256, 3, padding=1, device=CUDA).eval()
        settings = SimpleNamespace(repeats=3, batch_sizes=[8, 1024], also=[])
        context = SimpleNamespace(
            config=SimpleNamespace(latency=settings),
            check_stop=lambda: None, progress=lambda *_: None,
        )  # fmt: skip
        bench = latency._Bench(
            context,
            latency._Way(context),
            torch.rand(8, 3, 64, 64, device=CUDA),
            {"fused": Variant(wide, 0.1, True, "cuda")},
            skipped={},
        )  # fmt: skip
        bench.time()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    # the output of one image takes 4 MiB, so 1 GiB holds at most 256
    assert 100 < bench.largest["fused"] < 256
    assert set(bench.timings) == {"fused/b8"}
    assert bench.peaks["fused/b8"] >= 32


def test_a_neighbour_on_the_gpu_is_noticed():
    quiet = machine.state(CUDA)
    assert machine.watched(quiet)
    assert all(machine.HELD_BACK + reason in quiet["gpu"] for reason in machine.REASONS)
    assert not list(machine.disturbed(quiet, quiet | {"time": quiet["time"] + 1}))
    code = (
        "import torch\nmatrix = torch.randn(4096, 4096, device='cuda')\nprint(flush=True)\n"
        "while True:\n    (matrix @ matrix).sum().item()"
    )
    burn = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        burn.stdout.readline()
        (reason, *_) = machine.disturbed(quiet, machine.state(CUDA))
    finally:
        burn.kill()
        burn.communicate()
    assert reason.startswith("other processes used") and reason.endswith("of the GPU")


def test_exact_float32_ends_the_rounding_of_tf32():
    torch.backends.cudnn.allow_tf32 = True
    layer = nn.Conv2d(256, 256, 3, device=CUDA)
    images = torch.randn(8, 256, 32, 32, device=CUDA)
    exact = layer.double()(images.double())
    layer.float()

    def error():
        return ((layer(images) - exact).abs().max() / exact.abs().max()).item()

    assert error() > 1e-4
    runtime.exact_float32()
    assert error() < 1e-5


def test_calls_are_not_queued_while_a_variant_settles():
    """The device would need seconds for the calls that the host can queue in 3 ms."""
    matrix = torch.randn(8192, 8192, device=CUDA)
    call = partial(torch.matmul, matrix, matrix)
    one = min(measure.seconds(call, CUDA) for _ in range(3))
    whole = measure.seconds(lambda: measure._settle(call, CUDA), CUDA)
    assert whole < measure.SETTLE_SECONDS + 3 * one
