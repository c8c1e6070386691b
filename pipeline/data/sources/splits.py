"""Divide files that hold many images into splits, by their names.

The names are as in Hugging Face and webdataset: `train-00000-of-00002.parquet`,
`validation/0000.parquet`, `imagenet-val-000012.tar`. If there are validation and test files, the
test files are ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from pipeline.data.sources.layout import NAMES
from pipeline.data.sources.tree import Row
from pipeline.display.errors import UserError

KINDS = {
    "train": set(NAMES["train"]),
    "val": {name for name in NAMES["val"] if "test" not in name},
    "test": {name for name in NAMES["val"] if "test" in name},
}


def divide(
    root: Path, names: list[str], fraction: float | None
) -> tuple[dict[str, list[str]], list[Row]]:
    """Return the files of `train` and `val`, or of `all`, and the ignored files.

    Args:
        root: folder of the files, for messages.
        names: names of the files within root.
        fraction: share of the images to hold out; None if both splits have files.

    Raises:
        UserError: the names contradict the settings.
    """
    of = {name: kind(name) for name in names}
    there = {split: [name for name in names if of[name] == split] for split in KINDS}
    held = there["val"] or there["test"]
    if fraction is not None:
        return {"all": _all(root, names, there, held)}, []
    if not there["train"] or not held:
        lack = f"no {'validation' if there['train'] else 'training'} file by its name"
        raise UserError(
            f"{root} holds {lack}, of {_some(names)}; data.val_fraction=0.1 splits what is there, "
            "or call files train-….* and validation-….*"
        )
    used = {*there["train"], *held}
    return {"train": there["train"], "val": held}, [
        {"name": name, "reason": _why(of[name])} for name in names if name not in used
    ]


def _all(root: Path, names: list[str], there: dict[str, list[str]], held: list[str]) -> list[str]:
    if there["train"] and held:
        raise UserError(
            f"{root} holds files to train on and to validate on, e.g. {there['train'][0]} and "
            f"{held[0]}; launch with data.val_fraction=null, which takes them as they are"
        )
    return names


def kind(name: str) -> str | None:
    """Return `train`, `val` or `test` according to a file's name; None if it has no such word."""
    words = [word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name.lower())]
    found = [split for word in words for split, known in KINDS.items() if word in known]
    return found[-1] if found else None


def _why(split: str | None) -> str:
    return "of a third split" if split else "of no split by its name"


def unsplittable(classes: tuple[str, ...], labels: list[int], fraction: float | None) -> UserError:
    """Return the error that images cannot be split by class: each split needs all classes."""
    counts = Counter(labels)
    alone = [classes[label] for label, count in counts.items() if count == 1]
    if alone:
        return UserError(
            f"class {alone[0]!r} has one image, and data.val_fraction={fraction} needs two of each "
            "class; add one, remove the class, or make splits of your own (train/ and val/)"
        )
    least = len(counts) / len(labels)
    return UserError(
        f"data.val_fraction={fraction} leaves less than one image of each of the {len(counts)} "
        f"classes on one side, of {len(labels)} images; use from {least:.3g} to {1 - least:.3g}"
    )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if names[3:] else ''}"
