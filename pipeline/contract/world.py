"""Connect the processes of one stage: their ranks and devices, and the values they exchange.

This module uses none of torch's object collectives, because they unpickle data from the network,
which can run code.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pipeline.contract import interrupt, pulse
from pipeline.records import packing

T = TypeVar("T")
LEAVING = 30.0  # seconds for a step after a stop request
MEETING = 60.0  # seconds for the rendezvous, beyond those for a step
FOR_EVER = timedelta(days=7)  # the parent ends hanging processes, and recognizes stopped ones


@dataclass(kw_only=True)
class World:
    """One process among `world_size`, and its device.

    A process without a heartbeat for `hang_timeout` seconds hangs: its parent makes it write the
    stack of each thread to stderr, and ends it. After a stop request the timeout is shorter: three
    times the longest silence so far, at least `LEAVING`. If the parent is gone, a C thread ends
    the process, whatever Python is stuck in. Unlike the parent, that thread cannot distinguish a
    pause (SIGSTOP) from a hang, so its timeout is longer while the parent lives.
    """

    rank: int
    world_size: int
    device: torch.device
    hang_timeout: int
    _beat: float = field(default_factory=time.monotonic, init=False)
    _longest: float = field(default=0.0, init=False)  # seconds between two heartbeats
    _stopping: bool = field(default=False, init=False)
    _parent: int = field(default_factory=os.getppid, init=False)

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether this is the only process, so that nothing has to be exchanged."""
        return self.world_size == 1

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has set it; the same on every process."""
        return [bool(answer) for answer in self.sums(*flags)]

    def sums(self, *values: float) -> list[float]:
        """Return small numbers, each summed over all processes.

        They are exchanged between CPUs, in a GPU training too, so no process waits for its GPU.
        """
        self.beat()
        if self.alone:
            return list(values)
        sums: list[float] = self.total(torch.tensor(values, dtype=torch.float64)).tolist()
        return sums

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, on every process; tensors in them on the CPU.

        A value is one that `packing` takes: plain values and tensors, in dicts, lists and tuples.
        """
        if self.alone:
            return [value]
        own = torch.frombuffer(bytearray(packing.dumps(value)), dtype=torch.uint8)
        sizes = self._all(torch.tensor([len(own)]))
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(own)] = own
        gathered = zip(self._all(padded), sizes, strict=True)
        return [packing.loads(packed[: int(size)].numpy().tobytes()) for packed, size in gathered]

    def from_main(self, find: Callable[[], T]) -> T:
        """Call `find` on the main process; return its result on every process."""
        found: T = self.gather(find() if self.main else None)[0]  # type: ignore[assignment]
        return found

    def spread(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors on every process by those of the main process."""
        for tensor in tensors if not self.alone else ():
            dist.broadcast(tensor, 0)

    def _all(self, own: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(gathered, own)
        return gathered

    def beat(self) -> None:
        """Send a heartbeat."""
        now = time.monotonic()
        if now - self._beat >= 1:
            self._longest = max(self._longest, now - self._beat)
            self._beat = now
            self._watch(self._patience())

    def hurry(self) -> None:
        """Shorten the hang timeout: a stop was requested."""
        self._stopping = True
        self._watch(self._patience())

    def saving(self) -> None:
        """Allow the full hang timeout for writing a checkpoint, even after a stop request."""
        self._watch(self.hang_timeout)

    def _patience(self) -> float:
        soon = max(LEAVING, 3 * self._longest) if self._stopping else self.hang_timeout
        return min(soon, self.hang_timeout)

    def _watch(self, seconds: float) -> None:
        pulse.beat(seconds)
        if self._stopping:
            limit = self.hang_timeout if pulse.watched(self._parent) else seconds
            faulthandler.dump_traceback_later(limit, exit=True)


@contextmanager
def world(hang_timeout: int) -> Iterator[World]:
    """Join the other processes, if there are any: NCCL between GPUs, gloo between CPUs.

    Args:
        hang_timeout: seconds without a heartbeat after which a process is ended; see `World`.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    here = World(rank=rank, world_size=world_size, device=device, hang_timeout=hang_timeout)
    faulthandler.register(pulse.SHOW)
    pulse.beat(hang_timeout + MEETING)
    with _group(here, backend):
        interrupt.install()  # from here on the process may have something to save
        interrupt.at_request(here.hurry)
        interrupt.die_with_parent(signal.SIGTERM)
        here.saving()
        try:
            yield here
            if not here.alone:
                dist.barrier()
        finally:
            faulthandler.cancel_dump_traceback_later()
            pulse.beat(0)


@contextmanager
def _group(here: World, backend: str) -> Iterator[None]:
    if here.alone:
        yield
        return
    dist.init_process_group(
        backend,
        store=_store(os.environ[pulse.RENDEZVOUS], here),
        rank=here.rank,
        world_size=here.world_size,
        timeout=FOR_EVER,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _store(meeting: str, here: World) -> Store:
    """Return the store where the processes of this attempt meet.

    If another job listens on the port, rank 0 cannot, and the attempt ends. By then the attempt's
    other ranks may have entered that job's store. The keys therefore have a prefix of their own:
    without it, one of them could pass for a rank of the other training, and the gradients of both
    would be reduced together.
    """
    store, *_ = next(rendezvous(meeting, here.rank, here.world_size, timeout=FOR_EVER))
    store.set_timeout(FOR_EVER)
    return PrefixStore(urlsplit(meeting).path, store)
