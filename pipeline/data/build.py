"""From a listing to shards: image by image, on all cores, and on from where it was stopped.

The order is drawn before anything is looked at, and cut into one task per shard; so what a shard
holds depends on nothing but the source and the settings, and a task that was done need not be done
again. A task leaves its shard and, written last, a record of what it saw. Only then is it known
which pictures are there twice; the few shards that lose one are written anew.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.data import shards
from pipeline.data.check import Bad, examine
from pipeline.data.record import KEPT, Record
from pipeline.data.sources import Item, Listing, Source, source
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.data import Images, Prep

ALONE = 4000  # so few images are not worth the start of other processes
SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard: where it goes, and the numbered images that are to be in it."""

    data: Images
    prep: Prep
    path: Path
    items: list[tuple[int, Item]]

    @property
    def record(self) -> Path:
        """What was seen; there if and only if the shard is complete."""
        return self.path.with_suffix(".json")


def numbered(listing: Listing) -> list[Item]:
    """Return all images; the place of each is its number."""
    return [item for items in listing.splits.values() for item in items]


def tasks(listing: Listing, data: Images, prep: Prep, folder: Path) -> list[Task]:
    """Return what is to be written, in order.

    Raises:
        UserError: a class has too few images to be in both splits.
    """
    items = numbered(listing)
    train, val = _order(listing, data)
    found = []
    for split, numbers in zip(SPLITS, (train, val), strict=True):
        for place in range(0, len(numbers), prep.shard_images):
            some = [(n, items[n]) for n in numbers[place : place + prep.shard_images]]
            path = folder / f"{split}-{place // prep.shard_images:05d}.tar"
            found.append(Task(data=data, prep=prep, path=path, items=some))
    return found


def _order(listing: Listing, data: Images) -> tuple[list[int], list[int]]:
    """Return the numbers of train, shuffled, and of val, as listed."""
    if "all" not in listing.splits:
        count = len(listing.splits["train"])
        shuffled = np.random.default_rng(data.split_seed).permutation(count)
        return shuffled.tolist(), list(range(count, count + len(listing.splits["val"])))
    from sklearn.model_selection import train_test_split

    labels = [item.label for item in listing.splits["all"]]
    try:
        train, val = train_test_split(
            np.arange(len(labels)),
            test_size=data.val_fraction,
            stratify=labels,
            random_state=data.split_seed,
        )
    except ValueError as error:
        raise UserError(
            f"data.val_fraction={data.val_fraction} cannot split these images: {error}"
        ) from None
    return train.tolist(), sorted(val.tolist())


def build(work: list[Task], cores: int, report: Callable[[int], None]) -> list[Record]:
    """Do all tasks that are not done yet; return the records of all, in order.

    Args:
        work: what to do.
        cores: how many processes may run.
        report: called with the number of images that are done; may raise to stop.

    Raises:
        OSError: a shard cannot be written.
        UserError: a process was killed.
    """
    open_ = [task for task in work if not task.record.exists()]
    done = sum(len(task.items) for task in work) - sum(len(task.items) for task in open_)
    report(done)
    for count in _carry_out(open_, cores):
        done += count
        report(done)
    return [Record.load(task.record) for task in work]


def _carry_out(open_: list[Task], cores: int) -> Iterator[int]:
    """Do tasks and yield the number of images of each that is done."""
    if cores == 1 or sum(len(task.items) for task in open_) <= ALONE:
        for task in open_:
            yield carry_out(task)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(cores, mp_context=context)
    try:
        waiting: set[Future[int]] = set()
        for task in open_:
            waiting.add(pool.submit(carry_out, task))
            if len(waiting) > 2 * cores:  # a million tasks would lie in memory
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    except BrokenProcessPool:
        raise UserError(
            "a process of prep was killed, perhaps for want of memory; launch again to go on, with "
            "fewer cluster.cpus_per_process if it is"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_opened: dict[str, Source] = {}


def carry_out(task: Task) -> int:
    """Write a shard and its record; return how many images were looked at."""
    key = repr(task.data)
    if key not in _opened:
        _opened[key] = source(task.data)
    writer = shards.Writer(task.path)
    kept: list[tuple[int, ...]] = []
    remarks: dict[int, str] = {}
    bad: list[dict[str, str]] = []
    histogram = np.zeros((3, 256), dtype=np.int64)
    for number, item in task.items:
        try:
            good = examine(item.name, _opened[key].read(item.name), task.prep)
        except OSError as error:
            bad.append({"name": item.name, "reason": f"cannot be read: {error.strerror or error}"})
            continue
        except Bad as error:
            bad.append({"name": item.name, "reason": str(error)})
            continue
        writer.add(number, good.data, good.extension, item.label)
        kept.append((number, item.label, *good.size, good.pixels, good.looks))
        histogram += good.histogram
        if good.remark:
            remarks[number] = good.remark
    Record(
        shard=writer.close(),
        kept=np.array(kept, dtype=KEPT),
        remarks=remarks,
        bad=bad,
        histogram=histogram,
    ).save(task.record)
    return len(task.items)


class Stored:
    """The pictures that are in the shards, by their number."""

    def __init__(self, work: list[Task], records: list[Record]) -> None:
        self._work = work
        self._task = np.empty(1 + max(n for task in work for n, _ in task.items), dtype=np.int32)
        for place, record in enumerate(records):
            self._task[record.kept["number"]] = place

    def same(self, number: int, other: int) -> bool:
        """Return whether two pictures, whose hashes are equal, are so in every pixel."""
        one, two = (shards.picture(self._work[self._task[n]].path, n) for n in (number, other))
        if one == two or one is None or two is None:  # it was taken out before prep was killed
            return True
        first, second = (Image.open(io.BytesIO(data)).convert("RGB") for data in (one, two))
        return np.array_equal(np.asarray(first), np.asarray(second))


def drop(task: Task, record: Record, numbers: set[int]) -> Record:
    """Write a shard anew without some of its images; return its new record."""
    writer = shards.Writer(task.path)
    for number, data, extension, label in shards.images_in(task.path):
        if number not in numbers:
            writer.add(number, data, extension, label)
    shard = writer.close()
    if shard is None:
        task.path.unlink()
        task.path.with_suffix(".idx").unlink()
    left = ~np.isin(record.kept["number"], list(numbers))
    return replace(record, shard=shard, kept=record.kept[left])
