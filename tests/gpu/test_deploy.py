"""Exported files and timing on a CUDA device; skipped without one."""

import pytest
import torch
from torch import nn

from pipeline.export import runtime
from pipeline.export.formats import Source
from pipeline.export.write import write
from pipeline.timing import machine, measure, memory

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


@pytest.mark.parametrize("name", ["pt2", "torchscript"])
def test_a_file_written_on_the_cpu_runs_where_its_images_are(tmp_path, name):
    images = torch.randn(8, 3, 32, 32)
    source = Source(network=network(), images=images, card="{}", opset=18)
    ((_, outcome),) = write(source, tmp_path, [name], images)
    run, _ = runtime.load(tmp_path / outcome["file"])
    with torch.inference_mode():
        scores = run(images.cuda())
        assert scores.is_cuda
        torch.testing.assert_close(scores.cpu(), network()(images), rtol=1e-3, atol=1e-4)


def test_a_call_ends_when_the_device_has_done_it():
    """A multiplication that takes milliseconds returns at once without synchronising."""
    matrix = torch.randn(8192, 8192, device=CUDA)
    measure.warm_up(lambda: matrix @ matrix, CUDA)
    assert measure.seconds(lambda: matrix @ matrix, CUDA) > 1e-3


def test_the_peak_of_a_call_is_told_by_the_allocator():
    found = memory.peak(lambda: torch.ones(64 * 2**20, dtype=torch.uint8, device=CUDA), CUDA)
    assert found == pytest.approx(64, abs=1)


def test_a_batch_beyond_the_memory_is_told_from_other_errors():
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2 * free, dtype=torch.uint8, device=CUDA)
    assert memory.exceeded(caught.value)


def test_the_driver_tells_clocks():
    assert "clocks.sm" in machine.state()["gpu"]
