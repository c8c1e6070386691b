"""When steps begin and end, as whoever computes them sees it.

A GPU works off what the host has queued long before, so the host's clock would tell of its queue.
There a mark is an event of the GPU itself, which can be read once the GPU has passed it.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """Return this moment: on a GPU, the end of what it was given so far."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(first: Mark, last: Mark) -> float:
    """Return the time between two marks, which the device must have passed."""
    if isinstance(first, float) or isinstance(last, float):
        assert isinstance(first, float) and isinstance(last, float)
        return last - first
    return first.elapsed_time(last) / 1000


class OnItsWay:
    """Values of a device on their way to the host, which need not wait for them."""

    def __init__(self, values: Tensor) -> None:
        self._gpu = values.is_cuda
        self._values = values
        if self._gpu:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def get(self) -> list[float]:
        """Return the values; waits for those that have not arrived."""
        if self._gpu:
            self._arrived.synchronize()
        found: list[float] = self._values.tolist()
        return found
