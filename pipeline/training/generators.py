"""Save and restore all random generators of a process, as plain values and tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import numpy as np
import torch


class Generators(TypedDict):
    """The states of all random generators, each as its library returns it."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: torch.Tensor
    cuda: list[torch.Tensor]


def seed(number: int) -> None:
    """Seed python, numpy, and torch on every device."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def state() -> Generators:
    """Return the states of all generators."""
    numpy = np.random.get_state(legacy=True)
    assert isinstance(numpy, tuple)
    kind, keys, *rest = numpy
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: Generators) -> None:
    """Restore the states that `state` returned."""
    kind, keys, *rest = saved["numpy"]
    random.setstate(saved["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(saved["torch"])
    if len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])


@contextmanager
def kept() -> Iterator[None]:
    """Restore all generators after the body of the `with` statement."""
    drawn = state()
    try:
        yield
    finally:
        restore(drawn)
