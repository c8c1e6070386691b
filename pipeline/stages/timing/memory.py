"""Measure the memory of a call, and find the largest batch that fits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20


def peak(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak memory of a call in MiB, beyond the memory before it; None if unknown.

    On a GPU it is read from torch's allocator, on Linux from the peak of resident pages.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise the call would reuse freed pages
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
        start = _resident("VmRSS")
        call()
        return (_resident("VmHWM") - start) / 1024
    except (OSError, ValueError):
        return None


def _resident(field: str) -> float:
    """Return a field of /proc/self/status, KiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    raise ValueError(f"no {field}")


def exceeded(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    known = ("can't allocate memory", "out of memory", "Failed to allocate", "bad_alloc")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in known
    )


def largest_batch(fits: Callable[[int], bool], below: int, above: int) -> int:
    """Return the largest batch that fits, by bisection.

    Args:
        fits: returns whether a batch size fits.
        below: a size that fits, or 0.
        above: a size that does not fit.
    """
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return below
