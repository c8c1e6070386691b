"""Pictures that are there more than once, by what was recorded of each.

A copy of a validation image among the training images makes every accuracy too good, so it is taken
out. Copies within one split are told and kept: published datasets have them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SOME = 256  # are compared at a time: all validation images may look like each
NEAR = 3  # of 64 bits that may differ between two that look alike
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What is there twice.

    Args:
        leaks: for each training image that is also a validation image: the number of the latter.
        copies: (number, number of the first one) within a split.
        contradictions: those among the copies that have another label than the first.
        alike: (training, validation) images whose looks are nearly the same and pixels are not.
    """

    leaks: dict[int, int]
    copies: list[tuple[int, int]]
    contradictions: list[tuple[int, int]]
    alike: list[tuple[int, int]]


def find(train: list[Record], val: list[Record], same: Callable[[int, int], bool]) -> Duplicates:
    """Compare what was kept of both splits; `same` decides of two numbers with equal hashes."""
    parts = [_columns(records) for records in (train, val)]
    (numbers, _, pixels, looks), (val_numbers, _, val_pixels, val_looks) = parts
    leaks = {n: m for n, m in _pairs(numbers, pixels, val_numbers, val_pixels) if same(n, m)}
    alike = list(_alike(numbers, looks, val_numbers, val_looks))
    copies, contradictions = [], []
    for numbers, labels, pixels, _ in parts:
        _, first, which = np.unique(pixels, return_index=True, return_inverse=True)
        for place in np.flatnonzero(first[which] != np.arange(len(pixels))):
            pair = int(numbers[place]), int(numbers[first[which[place]]])
            if not same(*pair):
                continue
            copies.append(pair)
            if labels[place] != labels[first[which[place]]]:
                contradictions.append(pair)
    return Duplicates(
        leaks=leaks,
        copies=[pair for pair in copies if pair[0] not in leaks],
        contradictions=contradictions,
        alike=[pair for pair in alike if pair[0] not in leaks],
    )


def _columns(records: list[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, labels and hashes (64 bits) of pixels and of looks; 0: no looks."""
    rows = [row for record in records for row in record["kept"]]
    return (
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([int(row[4], 16) for row in rows], dtype=np.uint64),
        np.array([row[5] or 0 for row in rows], dtype=np.uint64),
    )


def _pairs(
    numbers: np.ndarray, hashes: np.ndarray, others: np.ndarray, other_hashes: np.ndarray
) -> list[tuple[int, int]]:
    """Return (number, other) wherever a hash is among the others."""
    known = dict(zip(other_hashes.tolist(), others.tolist(), strict=True))
    found = np.flatnonzero(np.isin(hashes, other_hashes))
    return [(int(numbers[place]), known[int(hashes[place])]) for place in found]


def _alike(
    numbers: np.ndarray, looks: np.ndarray, others: np.ndarray, other_looks: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Yield for each number that has one a look-alike among the others.

    Where at most three bits differ, one of four 16-bit parts is equal: only those are compared.
    """
    numbers, looks = numbers[looks > 0], looks[looks > 0]
    others, other_looks = others[other_looks > 0], other_looks[other_looks > 0]
    parts = [_part(other_looks, place) for place in range(NEAR + 1)]
    orders = [part.argsort(kind="stable") for part in parts]
    for begin in range(0, len(looks), SOME):
        found: dict[int, int] = {}
        some = looks[begin : begin + SOME]
        for place, (part, order) in enumerate(zip(parts, orders, strict=True)):
            wanted = _part(some, place)
            first = np.searchsorted(part, wanted, "left", sorter=order)
            count = np.searchsorted(part, wanted, "right", sorter=order) - first
            one = np.repeat(np.arange(len(some)), count)
            within = np.arange(len(one)) - np.repeat(count.cumsum() - count, count)
            other = order[np.repeat(first, count) + within]
            near = np.bitwise_count(some[one] ^ other_looks[other]) <= NEAR
            found |= dict(zip(one[near].tolist(), other[near].tolist(), strict=True))
        for one_, other_ in sorted(found.items()):
            yield int(numbers[begin + one_]), int(others[other_])


def _part(looks: np.ndarray, place: int) -> np.ndarray:
    return (looks >> np.uint64(16 * place)).astype(np.uint16)
