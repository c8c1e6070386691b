"""Find duplicate pictures, from the records of the images.

A copy of a validation image among the training images inflates every accuracy, so it is removed.
Copies within one split are reported and kept, because published datasets contain them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

SOME = 256  # training images compared at a time, because each may resemble all validation images
NEAR = 3  # bits of 64 that may differ between look-alikes


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """The duplicates that were found.

    Args:
        leaks: by the number of a training image that is also in validation, the number there.
        copies: (number of the copy, number of the first such image), both in one split.
        contradictions: the copies whose label differs from that of the first such image.
        alike: (training, validation) numbers of images that look nearly the same but are not equal.
    """

    leaks: dict[int, int]
    copies: list[tuple[int, int]]
    contradictions: list[tuple[int, int]]
    alike: list[tuple[int, int]]


def find(train: np.ndarray, val: np.ndarray, same: Callable[[int, int], bool]) -> Duplicates:
    """Compare the images of both splits.

    Args:
        train: table of images; see `shard_record.KEPT`.
        val: the same table for validation.
        same: decides for two numbers with equal hashes whether all pixels are equal.
    """
    leaks = {n: m for n, m in _pairs(train, val) if same(n, m)}
    copies, contradictions = [], []
    for table in (train, val):
        _, first, which = np.unique(table["pixels"], return_index=True, return_inverse=True)
        for row in np.flatnonzero(first[which] != np.arange(len(table))):
            one, original = table[row], table[first[which[row]]]
            pair = int(one["number"]), int(original["number"])
            if not same(*pair):
                continue
            copies.append(pair)
            if one["label"] != original["label"]:
                contradictions.append(pair)
    return Duplicates(
        leaks=leaks,
        copies=[pair for pair in copies if pair[0] not in leaks],
        contradictions=contradictions,
        alike=[pair for pair in _alike(train, val) if pair[0] not in leaks],
    )


def _pairs(train: np.ndarray, val: np.ndarray) -> list[tuple[int, int]]:
    """Return (training, validation) numbers of images whose pixels have equal hashes."""
    known = dict(zip(val["pixels"].tolist(), val["number"].tolist(), strict=True))
    found = train[np.isin(train["pixels"], val["pixels"])]
    return [(int(row["number"]), known[int(row["pixels"])]) for row in found]


def _alike(train: np.ndarray, val: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield for each training image its look-alike among the validation images, if any.

    If at most three bits differ, at least one of the four quarters (16 bits) is equal. So only
    images with an equal quarter are compared.
    """
    train, val = train[train["looks"] > 0], val[val["looks"] > 0]
    looks, other_looks = train["looks"], val["looks"]
    quarters = [_quarter(other_looks, number) for number in range(NEAR + 1)]
    orders = [quarter.argsort(kind="stable") for quarter in quarters]
    for begin in range(0, len(looks), SOME):
        found: dict[int, int] = {}
        some = looks[begin : begin + SOME]
        for number, (quarter, order) in enumerate(zip(quarters, orders, strict=True)):
            wanted = _quarter(some, number)
            first = np.searchsorted(quarter, wanted, "left", sorter=order)
            count = np.searchsorted(quarter, wanted, "right", sorter=order) - first
            one = np.repeat(np.arange(len(some)), count)
            within = np.arange(len(one)) - np.repeat(count.cumsum() - count, count)
            other = order[np.repeat(first, count) + within]
            near = np.bitwise_count(some[one] ^ other_looks[other]) <= NEAR
            found |= dict(zip(one[near].tolist(), other[near].tolist(), strict=True))
        for one_, other_ in sorted(found.items()):
            yield int(train["number"][begin + one_]), int(val["number"][other_])


def _quarter(looks: np.ndarray, number: int) -> np.ndarray:
    return (looks >> np.uint64(16 * number)).astype(np.uint16)
