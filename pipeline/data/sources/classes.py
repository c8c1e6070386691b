"""Convert labels of a data set, numbers or names, to the classes that a network learns."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.sources import names
from pipeline.data.sources.base import Item
from pipeline.display.errors import UserError

Label = int | str
UNLABELLED: tuple[Label, ...] = (-1, "")
Labelled = dict[str, list[tuple[str, Label]]]  # by split: name and label of each image


def labelled(
    found: Labelled, known: tuple[str, ...], where: Path
) -> tuple[tuple[str, ...], dict[str, list[Item]]]:
    """Return the names of the classes, and the items of each split.

    Args:
        found: all images with their labels.
        known: names of the classes, by label; empty if the labels are the names.
        where: path of the data, for messages.

    Raises:
        UserError: a label is not a class, or a class has no training image.
    """
    for split, rows in found.items():
        if not rows:
            raise UserError(f"{where} has no images{f' in {split}' * (split != 'all')}; add some")
        if unlabelled := next(((name, label) for name, label in rows if label in UNLABELLED), None):
            raise UserError(
                f"{where / unlabelled[0]} has the label {unlabelled[1]!a}, so its class is "
                "unknown; leave out images without a class"
            )
    first = next(iter(found))  # train, or all
    labels = {label for _, label in found[first]}
    names.check(known, where, "class")
    order: dict[Label, str] = {**dict(enumerate(known))} if known else _named(labels, where)
    numbers = {label: n for n, label in enumerate(order)}
    for split, rows in found.items():
        for name, label in rows:
            if label not in numbers:
                raise UserError(unknown(where / name, label, bool(known), split, len(numbers)))
    _check_filled(order, labels, where)
    return tuple(order.values()), {
        split: [Item(name, numbers[label]) for name, label in rows] for split, rows in found.items()
    }


def _named(labels: set[Label], where: Path) -> dict[Label, str]:
    """Return the names of the classes by their labels alone; numbers are sorted as numbers."""
    texts = {label for label in labels if isinstance(label, str)}
    if texts and texts != labels:
        one, other = min(texts), min(label for label in labels if isinstance(label, int))
        raise UserError(f"{where} has labels that are names ({one!a}) and numbers ({other})")
    names.check(texts, where, "label")
    return {label: str(label) for label in sorted(labels)}


def _check_filled(order: dict[Label, str], labels: set[Label], where: Path) -> None:
    if len(order) < 2:
        raise UserError(
            f"{where} has images of one class only, {', '.join(order.values())}; use at least 2"
        )
    empty = [name for label, name in order.items() if label not in labels]
    if empty:
        more = f" and {len(empty) - 1} more of its {len(order)}" if empty[1:] else ""
        raise UserError(
            f"{where}: class {empty[0]!a}{more} has no image to train on; add some, or write the "
            "data again without it"
        )


def unknown(image: Path, label: Label, known: bool, split: str, count: int) -> str:
    """Return that the label of an image is not a class."""
    text = f"{image} has the label {label!a}"
    if known:
        return f"{text}, but the {count} classes go from 0 to {count - 1}; correct it"
    return f"{text} in {split}, of which there is no image to train on; add some, or leave it out"
