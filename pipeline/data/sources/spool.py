"""Write the images of an iterator to disk, so that they can be read in any order.

SPLIT.images    encoded bytes of all images, concatenated
SPLIT.json      end offset and label of each image; written last
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.data.sources.classes import Label

Pair = tuple[bytes, Label]


class Spool:
    """The images of one split."""

    def __init__(self, folder: Path, split: str) -> None:
        self._images = folder / f"{split}.images"
        self._index = folder / f"{split}.json"

    def fill(self, pairs: Iterable[Pair]) -> None:
        """Write all images of an iterator."""
        ends, labels, end = [], [], 0
        self._images.parent.mkdir(parents=True, exist_ok=True)
        with self._images.open("wb") as file:
            for image, label in pairs:
                file.write(image)
                end += len(image)
                ends.append(end)
                labels.append(label)
        self._index.write_text(json.dumps({"ends": ends, "labels": labels}), encoding="utf-8")

    @property
    def full(self) -> bool:
        """Whether all images are written."""
        return self._index.exists()

    @cached_property
    def targets(self) -> list[Label]:
        """The labels, in order."""
        labels: list[Label] = self._content["labels"]
        return labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> Pair:
        ends = self._content["ends"]
        begin = ends[number - 1] if number else 0
        self._file.seek(begin)
        return self._file.read(ends[number] - begin), self.targets[number]

    @cached_property
    def _content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._index.read_text(encoding="utf-8"))
        return found

    @cached_property
    def _file(self) -> BinaryIO:
        return self._images.open("rb")
