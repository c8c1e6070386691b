"""Pictures that are there more than once, by what was recorded of each.

A copy of a validation image among the training images makes every accuracy too good, so it is taken
out. Copies within one split are told and kept: published datasets have them, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What is there twice.

    Args:
        leaks: for each training image that is also a validation image: the number of the latter.
        copies: (number, number of the first one) within a split.
        contradictions: those among the copies that have another label than the first.
        alike: (training, validation) images whose looks are the same and pixels are not.
    """

    leaks: dict[int, int]
    copies: list[tuple[int, int]]
    contradictions: list[tuple[int, int]]
    alike: list[tuple[int, int]]


def find(train: list[Record], val: list[Record]) -> Duplicates:
    """Compare what was kept of both splits."""
    parts = [_columns(records) for records in (train, val)]
    (numbers, _, pixels, looks), (val_numbers, _, val_pixels, val_looks) = parts
    leaks = dict(_pairs(numbers, pixels, val_numbers, val_pixels))
    alike = _pairs(numbers[looks > 0], looks[looks > 0], val_numbers, val_looks)
    copies, contradictions = [], []
    for numbers, labels, pixels, _ in parts:
        _, first, which = np.unique(pixels, return_index=True, return_inverse=True)
        for place in np.flatnonzero(first[which] != np.arange(len(pixels))):
            pair = int(numbers[place]), int(numbers[first[which[place]]])
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
        np.array([int(row[4][:16], 16) for row in rows], dtype=np.uint64),
        np.array([row[5] or 0 for row in rows], dtype=np.uint64),
    )


def _pairs(
    numbers: np.ndarray, hashes: np.ndarray, others: np.ndarray, other_hashes: np.ndarray
) -> list[tuple[int, int]]:
    """Return (number, other) wherever a hash is among the others."""
    known = dict(zip(other_hashes.tolist(), others.tolist(), strict=True))
    found = np.flatnonzero(np.isin(hashes, other_hashes))
    return [(int(numbers[place]), known[int(hashes[place])]) for place in found]
