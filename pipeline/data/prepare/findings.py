"""Write the findings of prep: three lists beside the shards; count and print their rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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

QUARANTINE, PASSED, REMARKS = "quarantine.jsonl", "passed_over.jsonl", "remarks.jsonl"


def save(
    folder: Path, listing: Listing, of_val: Sequence[int], records: list[Record], twice: Duplicates
) -> None:
    """Write which images were left out, which are odd, and which files were passed over.

    Args:
        folder: the folder of the shards.
        listing: all images of the source.
        of_val: the number of validation images of each class.
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
        {"kind": "class", "name": name, "remark": "has no validation image"}
        for name, count in zip(listing.classes, of_val, strict=True)
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


def tell(folder: Path, counted: dict[str, float]) -> None:
    """Print how many files were left out, ignored or odd, and the lists that name them."""
    for file, key, words in (
        (QUARANTINE, "quarantined", "images were left out"),
        (PASSED, "ignored_files", "files and folders were passed over"),
        (REMARKS, "odd_files", "images were kept but are odd"),
    ):
        if counted[key]:
            rows = list(islice(rundir.read_lines(folder / file), 3))
            some = "; ".join(f"{row['name']!a}: {_why(row)}" for row in rows)
            say(f"{counted[key]:,.0f} {words}, e.g. {some}; {folder / file} lists all")


def _why(row: Row) -> str:
    return row.get("reason") or row["remark"]
