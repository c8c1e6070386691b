"""Measure when steps begin and end on the device that computes them.

A GPU executes work that the host queued earlier, so the host's clock would measure queueing. On a
GPU a mark is a CUDA event, which can be read once the GPU has passed it.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """Return a mark of this moment; on a GPU, of the moment when all queued work is done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(first: Mark, last: Mark) -> float:
    """Return the seconds between two marks, which the device must have passed."""
    if isinstance(first, float) or isinstance(last, float):
        assert isinstance(first, float) and isinstance(last, float)
        return last - first
    return first.elapsed_time(last) / 1000


class OnItsWay:
    """An asynchronous copy of values from a device to the host."""

    def __init__(self, values: Tensor) -> None:
        self._gpu = values.is_cuda
        self._values = values
        if self._gpu:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def get(self) -> list[float]:
        """Return the values; wait until they have arrived."""
        if self._gpu:
            self._arrived.synchronize()
        found: list[float] = self._values.tolist()
        return found
