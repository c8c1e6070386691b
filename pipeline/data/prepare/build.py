"""Turn a listing into shards, on all cores, and continue after an interruption.

The order of the images is drawn before any image is read, and divided into one task per shard. So
the content of a shard depends only on the source and the settings, and a finished task is never
repeated. A task writes its shard and, last, a record of its images. Duplicates are known only after
all tasks; the few shards that lose an image are then written again.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.contract import interrupt
from pipeline.data import shards
from pipeline.data.prepare.examine import Bad, examine
from pipeline.data.prepare.patience import PAUSE, patiently
from pipeline.data.prepare.shard_record import KEPT, Record
from pipeline.data.sources.base import Item, Listing, Source
from pipeline.data.sources.choose import source
from pipeline.data.sources.splits import unsplittable
from pipeline.display.errors import UserError
from pipeline.records.environment import fewer_cores

if TYPE_CHECKING:
    from pipeline.config.data import Images, Prep

ALONE = 4000  # below this, starting workers costs more than it saves
SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard: its path, and the numbered images to put into it.

    `state` is a digest of the sizes and times of the images' files, so that changed files are read
    again. `offsets` are those of the listing, if it has any; `scratch` is the source's folder
    for temporary files.
    """

    data: Images
    prep: Prep
    path: Path
    items: list[tuple[int, Item]]
    state: str
    offsets: list[tuple[int]] = field(default_factory=list)
    scratch: Path | None = None

    @property
    def record(self) -> Path:
        """The path of the task's record, which exists if and only if the shard is complete."""
        return self.path.with_suffix(".json")

    def forget(self) -> None:
        """Remove the files of the task, the record first."""
        for path in (self.record, self.path, self.path.with_suffix(".idx")):
            path.unlink(missing_ok=True)


def numbered(listing: Listing) -> list[Item]:
    """Return all images; the index of each is its number."""
    return [item for items in listing.splits.values() for item in items]


def tasks(
    listing: Listing, data: Images, prep: Prep, folder: Path, scratch: Path | None = None
) -> list[Task]:
    """Return the tasks, in order.

    Raises:
        UserError: a class has too few images to be in both splits.
    """
    items = numbered(listing)
    train, val = _order(listing, data)
    found = []
    for split, numbers in zip(SPLITS, (train, val), strict=True):
        for start in range(0, len(numbers), prep.shard_images):
            some = numbers[start : start + prep.shard_images]
            found.append(
                Task(
                    data=data,
                    prep=prep,
                    path=folder / f"{split}-{start // prep.shard_images:05d}.tar",
                    items=[(n, items[n]) for n in some],
                    state=_state(listing, some),
                    offsets=[(listing.offsets[n],) for n in some] if listing.offsets else [],
                    scratch=scratch,
                )
            )
    return found


def _state(listing: Listing, numbers: list[int]) -> str:
    if not listing.facts:
        return hashlib.sha256(repr(listing.others).encode()).hexdigest() if listing.others else ""
    facts = np.frombuffer(listing.facts, dtype=np.int64).reshape(-1, 2)
    return hashlib.sha256(facts[numbers].tobytes()).hexdigest()


def _order(listing: Listing, data: Images) -> tuple[list[int], list[int]]:
    """Return the numbers of the training images, shuffled, and of validation images, as listed."""
    if "all" not in listing.splits:
        count = len(listing.splits["train"])
        shuffled = np.random.default_rng(data.split_seed).permutation(count)
        return _together(shuffled, listing, data), [
            *range(count, count + len(listing.splits["val"]))
        ]
    from sklearn.model_selection import train_test_split

    labels = [item.label for item in listing.splits["all"]]
    try:
        train, val = train_test_split(
            np.arange(len(labels)),
            test_size=data.val_fraction,
            stratify=labels,
            random_state=data.split_seed,
        )
    except ValueError:
        raise unsplittable(listing.classes, labels, data.val_fraction) from None
    return _together(train, listing, data), sorted(val.tolist())


def _together(numbers: np.ndarray, listing: Listing, data: Images) -> list[int]:
    """Shuffle numbers, but keep images of a group together, because they are read together."""
    if not listing.groups:
        return numbers.tolist()
    numbers = np.sort(numbers)
    groups = np.frombuffer(listing.groups, dtype=np.int64)[numbers]
    turn = np.random.default_rng(data.split_seed).permutation(groups.max() + 1)
    return numbers[np.argsort(turn[groups], kind="stable")].tolist()


def build(work: list[Task], cores: int, report: Callable[[int], None]) -> list[Record]:
    """Do all unfinished tasks; return the records of all tasks, in order.

    Args:
        work: the tasks.
        cores: largest number of processes.
        report: called regularly with the number of finished images; may raise to stop. A stop does
            not wait for running reads, because a dead file system never answers.

    Raises:
        OSError: a shard cannot be written.
        UserError: a process was killed.
    """
    open_ = [task for task in work if not _done(task)]
    done = sum(len(task.items) for task in work) - sum(len(task.items) for task in open_)

    def poll(more: int = 0) -> None:
        nonlocal done
        done += more
        report(done)

    poll()
    if cores == 1 or sum(len(task.items) for task in open_) <= ALONE:
        _here(open_, poll)
    else:
        _in_processes(open_, cores, poll)
    return [Record.load(task.record) for task in work]


def _done(task: Task) -> bool:
    """Whether a task is finished, and was done with the current files."""
    if not task.record.exists():
        return False
    if Record.load(task.record).state == task.state:
        return True
    task.forget()
    return False


def _here(open_: list[Task], poll: Callable[..., None]) -> None:
    """Do tasks in this process; call `poll` with each task's number of images, and regularly."""
    for task in open_:
        poll(patiently(partial(carry_out, task), poll))


def _in_processes(open_: list[Task], cores: int, poll: Callable[..., None]) -> None:
    """Do tasks on several cores."""
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(cores, mp_context=context, initializer=_begin)
    waiting: set[Future[int]] = set()
    left = iter(open_)
    try:
        while True:
            # not all tasks at once: a million of them would fill the memory
            waiting |= {
                pool.submit(carry_out, task) for task in islice(left, 2 * cores - len(waiting))
            }
            if not waiting:
                return
            finished, waiting = wait(waiting, PAUSE, return_when=FIRST_COMPLETED)
            poll(sum(future.result() for future in finished))
    except BrokenProcessPool:
        raise UserError(
            "a process of prep was killed; launch again to continue. If memory ran out, use "
            f"{fewer_cores()}"
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - others if waiting else ():
            process.kill()  # its read may never return
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """Ignore stop signals, which the parent handles, and die with the parent."""
    interrupt.ignore()
    interrupt.die_with_parent(signal.SIGKILL)


_opened: dict[str, Source] = {}


def carry_out(task: Task) -> int:
    """Write a shard and its record; return the number of images that were read."""
    key = repr(task.data)
    if key not in _opened:
        _opened[key] = source(task.data, task.scratch)
    writer = shards.Writer(task.path)
    kept: list[tuple[int, ...]] = []
    remarks: dict[int, str] = {}
    bad: list[dict[str, str]] = []
    channels = task.data.channels
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for index, (number, item) in enumerate(task.items):
        try:
            content = _opened[key].read(item.name, *(task.offsets[index] if task.offsets else ()))
            good = examine(item.name, content, task.prep, channels)
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
        state=task.state,
    ).save(task.record)
    return len(task.items)


class Stored:
    """The pictures in the shards, by image number."""

    def __init__(self, work: list[Task], records: list[Record]) -> None:
        self._work = work
        self._task = np.empty(1 + max(n for task in work for n, _ in task.items), dtype=np.int32)
        for index, record in enumerate(records):
            self._task[record.kept["number"]] = index

    def same(self, number: int, other: int) -> bool:
        """Return whether two pictures with equal hashes are equal in every pixel."""
        one, two = (shards.picture(self._work[self._task[n]].path, n) for n in (number, other))
        if one == two or one is None or two is None:  # None: removed by an earlier, killed prep
            return True
        mode = shards.MODES[self._work[0].data.channels]
        first, second = (Image.open(io.BytesIO(data)).convert(mode) for data in (one, two))
        return np.array_equal(np.asarray(first), np.asarray(second))


def drop(task: Task, record: Record, numbers: set[int]) -> Record:
    """Write a shard again without some of its images; return its new record."""
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
