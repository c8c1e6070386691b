"""Test the library on a CUDA device; without one, the test is skipped."""

import pytest
import torch
from torch import nn

import dyrep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_growing_under_autocast_and_fusing(layout):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).to("cuda", memory_format=layout)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    evolver = dyrep.DyRep(model, optimizer)
    x = torch.randn(32, 3, 16, 16, device="cuda").to(memory_format=layout)
    y = torch.randint(0, 4, (32,), device="cuda")
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16):
            nn.functional.cross_entropy(model(x), y).backward()
        evolver.accumulate()
        optimizer.step()
        optimizer.zero_grad()
    before = model.eval().double()(x.double())
    model.float().train()
    (event, *_) = evolver.adjust(calibration=[x])
    assert event.action == "grow"
    after = model.eval().double()(x.double())
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    deployed = dyrep.fuse(model.float(), inputs=x)
    assert not dyrep.block.blocks(deployed)
