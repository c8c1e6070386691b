"""The processes of one stage: who they are, where they compute, and the few words they exchange."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline import interrupt

T = TypeVar("T")


@dataclass(kw_only=True)
class World:
    """One process among `world_size`, and its device.

    Who exchanges no word for `hang_timeout` seconds hangs: it writes the stack of each of its
    threads to stderr and ends. A thread of C does that, so it works whatever Python is stuck in.
    """

    rank: int
    world_size: int
    device: torch.device
    hang_timeout: int
    _beat: float = field(default=0.0, init=False)

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Return of each flag whether it is set in any process; every process gets the same.

        The words go between CPUs, also where the training is on GPUs: those need not be waited for.
        """
        self.beat()
        answers = self.total(torch.tensor([float(flag) for flag in flags]))
        return [bool(answer) for answer in answers]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, on every process."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, find: Callable[[], T]) -> T:
        """Return what the main process finds, on every process."""
        found = [find() if self.main else None]
        dist.broadcast_object_list(found)
        return found[0]  # type: ignore[return-value]

    def spread(self, tensors: list[Tensor]) -> None:
        """Give every process the tensors of the main one."""
        for tensor in tensors:
            dist.broadcast(tensor, 0)

    def beat(self) -> None:
        """Say that this process is alive."""
        now = time.monotonic()
        if now - self._beat >= 1:
            self._beat = now
            faulthandler.dump_traceback_later(self.hang_timeout, exit=True)


@contextmanager
def world(hang_timeout: int) -> Iterator[World]:
    """Join the process group torchrun prepared: NCCL between GPUs, gloo between CPUs.

    Args:
        hang_timeout: Seconds without a word after which a process ends; see `World`.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    patience = timedelta(seconds=hang_timeout + 60)  # who waits for one that hangs shows its stack
    dist.init_process_group(backend, timeout=patience)
    interrupt.die_with_parent(signal.SIGTERM)  # from here on there is something to save
    here = World(rank=rank, world_size=world_size, device=device, hang_timeout=hang_timeout)
    here.beat()
    try:
        yield here
        dist.barrier()
    finally:
        faulthandler.cancel_dump_traceback_later()
        dist.destroy_process_group()
