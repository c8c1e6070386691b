"""Write the findings of prep: three lists beside the shards; count and print their rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from pipeline.data.prepare import build
from pipeline.data.prepare.duplicates import Duplicates
from pipeline.data.prepare.shard_record import Record
from pipeline.data.shards import Manifest
from pipeline.data.sources.base import Item, Listing
from pipeline.data.sources.tree import Row
from pipeline.display.outside import say
from pipeline.records import rundir

WORDS = {"train": "training", "val": "validation"}
QUARANTINE, PASSED, REMARKS = "quarantine.jsonl", "passed_over.jsonl", "remarks.jsonl"


def save(
    folder: Path,
    listing: Listing,
    counts: Mapping[str, Sequence[int]],
    records: list[Record],
    twice: Duplicates,
) -> None:
    """Write which images were left out, which are odd, and which files were passed over.

    Args:
        folder: the folder of the shards.
        listing: all images of the source.
        counts: the number of images of each class, by split.
        records: the record of each shard.
        twice: the duplicates among the images.
    """
    items = build.numbered(listing)
    bad = [row for record in records for row in record.bad]
    bad += [
        {"name": items[n].name, "reason": f"is also a validation image: {items[other].name}"}
        for n, other in twice.leaks.items()
    ]
    empty = [
        {"kind": "class", "name": name, "remark": f"has no {WORDS[split]} image"}
        for split, of_class in counts.items()
        for name, count in zip(listing.classes, of_class, strict=True)
        if not count
    ]
    write(folder / QUARANTINE, bad)
    write(folder / REMARKS, empty + _remarks(records, items, twice))
    write(folder / PASSED, listing.passed)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write a list, sorted by name."""
    ordered = sorted(rows, key=lambda row: row["name"])
    rundir.write_text(path, "".join(json.dumps(row) + "\n" for row in ordered))


def _remarks(records: list[Record], items: list[Item], twice: Duplicates) -> list[Row]:
    found = [
        {"kind": "file", "name": items[number].name, "remark": remark}
        for record in records
        for number, remark in record.remarks.items()
    ]
    kinds = {
        "copy": (twice.copies, "the same picture as"),
        "contradiction": (twice.contradictions, "of another class than its copy"),
        "alike": (twice.alike, "looks like the validation image"),
    }
    for kind, (pairs, words) in kinds.items():
        found += [
            {"kind": kind, "name": items[n].name, "remark": f"{words} {items[other].name}"}
            for n, other in pairs
        ]
    return found


def metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of a prepared folder."""
    manifest = Manifest.load(folder)
    train, val = (manifest.splits[split] for split in build.SPLITS)
    remarks = [row["kind"] for row in rundir.read_lines(folder / REMARKS)]
    return {
        "images": train.images + val.images,
        "train_images": train.images,
        "val_images": val.images,
        "classes": len(manifest.classes),
        "smallest_class": min(train.counts),
        "largest_class": max(train.counts),
        "mean_side": math.sqrt(train.pixels / train.images),
        "quarantined": len(list(rundir.read_lines(folder / QUARANTINE))),
        "copies": remarks.count("copy"),
        "contradictions": remarks.count("contradiction"),
        "alike": remarks.count("alike"),
        "odd_files": remarks.count("file"),
        "ignored_files": manifest.passed_over,
    }


def show(folder: Path, counted: dict[str, float]) -> None:
    """Print what was left out, ignored, odd or contradictory, and the lists that name it."""
    remarks = list(rundir.read_lines(folder / REMARKS))
    kinds = ("class", "contradiction", "file")
    empty, contradictory, odd = ([row for row in remarks if row["kind"] == one] for one in kinds)
    for file, count, words, rows in (
        (QUARANTINE, counted["quarantined"], "images were left out", None),
        (PASSED, counted["ignored_files"], "files and folders were passed over", None),
        (REMARKS, len(empty), "times a class has no image", empty),
        (REMARKS, len(contradictory), "images have a copy of another class", contradictory),
        (REMARKS, len(odd), "images were kept but are odd", odd),
    ):
        if count:
            first = islice(rundir.read_lines(folder / file) if rows is None else rows, 3)
            some = "; ".join(f"{row['name']!a}: {_why(row)}" for row in first)
            say(f"{count:,.0f} {words}, e.g. {some}; {folder / file} lists all")


def _why(row: Row) -> str:
    return row.get("reason") or row["remark"]
