"""Read webdataset shards: tar files with `KEY.jpg` and `KEY.cls` for each image.

Format: github.com/webdataset/webdataset. That package reads shards from beginning to end. This
module lists the offsets of the images with the standard library, so that they can be read in any
order.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.data.sources import splits, tars
from pipeline.data.sources.base import Listing
from pipeline.data.sources.classes import Label, Labelled, labelled
from pipeline.data.sources.tree import EXTENSIONS, Row, Tree, fact, tree
from pipeline.data.sources.truth import decoded
from pipeline.display.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.data import WebDataset as Settings

CLASS = ("cls", "cls.txt")
PATIENCE = 5.0  # seconds for counting; the number in the remaining shards is estimated by size
IMAGELESS = "no image among its parts:"
LONGEST = 1000  # bytes of a file with a class
MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
MOST = 1_000_000  # shards that a pattern may name


class Sample(NamedTuple):
    """An image: its name in the shard, its offset and its class."""

    name: str
    offset: int
    label: Label


@dataclass
class Members:
    """The members of a shard that share a key."""

    image: str = ""
    offset: int = 0
    label: Label | None = None
    endings: list[str] = field(default_factory=list)


class WebDataset:
    """Images in tar shards; the name of an image is `SHARD/KEY.jpg`."""

    def __init__(self, data: Settings) -> None:
        assert data.root is not None
        self.root, self._data = Path(data.root), data

    def count(self) -> int:
        until = time.monotonic() + PATIENCE
        files = [fact(self.root, name) for names in self._files[0].values() for name in names]
        found = seen = 0
        passed: list[Row] = []
        for file in files:
            found += sum(1 for _ in self._samples(file.name, passed))
            seen += file.size
            if time.monotonic() > until:
                return round(found * sum(file.size for file in files) / seen)
        self._refuse_imageless(found, passed)
        return found

    def listing(self) -> Listing:
        files, passed = self._files
        rows: Labelled = {}
        offsets, passed = array("q"), list(passed)
        for split, names in files.items():
            rows[split] = []
            for name in names:
                for sample in self._samples(name, passed):
                    rows[split].append((f"{name}/{sample.name}", sample.label))
                    offsets.append(sample.offset)
        self._refuse_imageless(len(offsets), passed)
        classes, items = labelled(rows, (), self.root)
        return Listing(
            classes=classes,
            splits=items,
            passed=passed,
            offsets=offsets,
            others=[fact(self.root, name) for names in files.values() for name in names],
            folders=self._tree.folders,
        )

    def read(self, name: str, offset: int) -> bytes:
        shard = name.partition(f"{tars.TAR}/")[0] + tars.TAR
        return tars.read(self.root / shard, offset)

    def _refuse_imageless(self, images: int, passed: list[Row]) -> None:
        """Refuse shards in which no member has the ending of an image format, e.g. `KEY.a.png`."""
        found = (row for row in passed if row["reason"].startswith(IMAGELESS))
        if images == 0 and (row := next(found, None)):
            raise UserError(
                f"{self.root} has no images: {row['name']!a} has {row['reason']}; write them as "
                "KEY.jpg, KEY.png, … with KEY.cls, and no other dot in the name after KEY"
            )

    def _samples(self, shard: str, passed: list[Row]) -> Iterator[Sample]:
        """Yield the images of a shard; record ignored members.

        Raises:
            UserError: the shard is damaged, or an image has no class.
        """
        where = self.root / shard
        for key, members in self._members(shard, passed).items():
            if not members.image:
                reason = f"{IMAGELESS} {', '.join(members.endings)}"
                passed.append({"name": f"{shard}/{key}", "reason": reason})
            elif members.label is None:
                raise UserError(
                    f"{where} has {members.image!a} without its class: of {key!a} there is "
                    f"{', '.join(members.endings)}, no cls"
                )
            else:
                yield Sample(members.image, members.offset, members.label)

    def _members(self, shard: str, passed: list[Row]) -> dict[str, Members]:
        """Return the members of a shard, by key."""
        where = self.root / shard
        found: dict[str, Members] = {}
        with tars.opened(where) as stream:
            for member in tars.members(stream, where, passed, shard):
                if not (named := MEMBER.fullmatch(member.name.removeprefix("./"))):
                    passed.append({"name": f"{shard}/{member.name}", "reason": "no KEY.ENDING"})
                    continue
                key, ending = named[1], named[2].lower()
                members = found.setdefault(key, Members())
                _refuse_second(where, key, ending, members)
                members.endings.append(ending)
                if f".{ending}" in EXTENSIONS:
                    members.image, members.offset = named[0], member.offset_data
                elif ending in CLASS:
                    stream.seek(member.offset_data)
                    members.label = _label(stream.read(min(member.size, LONGEST)), where, named[0])
        return found

    @cached_property
    def _tree(self) -> Tree:
        if not self.root.is_dir():
            raise UserError(f"{self.root} is not a folder; data.root needs tar shards in it")
        return tree(self.root, False, {tars.TAR})

    @cached_property
    def _files(self) -> tuple[dict[str, list[str]], list[Row]]:
        """Return the shards of each split, and the ignored files."""
        names = [file.name for file in self._tree.images]
        if not names:
            raise UserError(
                f"{self.root} holds no .tar file{_compressed(self._tree)}; point data.root at the "
                "folder with the shards"
            )
        if self._data.train is None and self._data.val is None:
            found, passed = splits.divide(self.root, names, self._data.val_fraction)
            return found, [*self._tree.passed, *passed]
        found = self._named(names)
        unused = sorted(set(names) - {name for some in found.values() for name in some})
        reason = "not among data.train and data.val"
        rest = [{"name": name, "reason": reason} for name in unused]
        return found, [*self._tree.passed, *rest]

    def _named(self, names: list[str]) -> dict[str, list[str]]:
        """Return the shards that the settings name."""
        train, val, fraction = self._data.train, self._data.val, self._data.val_fraction
        if train is None or (val is None) == (fraction is None):
            raise UserError(
                f"data.train={train} data.val={val} data.val_fraction={fraction} do not say what "
                "to train on and what to validate on; set data.train, and one of the two others"
            )
        if val is None:
            return {"all": self._matching(names, "train", train)}
        found = {
            "train": self._matching(names, "train", train),
            "val": self._matching(names, "val", val),
        }
        if both := sorted(set(found["train"]) & set(found["val"])):
            raise UserError(f"{self.root / both[0]} is in data.train and in data.val; name it once")
        return found

    def _matching(self, names: list[str], key: str, pattern: str) -> list[str]:
        found: list[str] = []
        for one in braces(pattern):
            some = fnmatch.filter(names, one)
            if not some:
                raise UserError(f"{self.root / one} is not there; data.{key}={pattern} names it")
            found += some
        return list(dict.fromkeys(found))


def _refuse_second(where: Path, key: str, ending: str, members: Members) -> None:
    if ending in members.endings:
        raise UserError(f"{where} has {f'{key}.{ending}'!a} twice; write it again with one")
    if f".{ending}" in EXTENSIONS and members.image:
        raise UserError(f"{where} has two images of {key!a}, {members.endings}; leave one of them")


def _label(content: bytes, where: Path, name: str) -> Label:
    if (text := decoded(content)) is None:
        raise UserError(f"{where}: {name!a} is not UTF-8 text; write a class into it")
    text = text.strip()
    return int(text) if re.fullmatch(r"[-+]?[0-9]{1,9}", text) else text


def _compressed(found: Tree) -> str:
    names = [row["name"] for row in found.passed if re.search(r"\.(tar\.\w+|tgz)$", row["name"])]
    return f", but {names[0]}, which is compressed: `gunzip` it" if names else ""


def braces(pattern: str) -> list[str]:
    """Expand a pattern to names: `{00..12}` is a range, `{a,b}` a list.

    Raises:
        UserError: the pattern names too many shards, or a range counts down.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = list(map(_choices, pieces, range(len(pieces))))
    if (count := math.prod(map(len, choices))) > MOST:
        raise UserError(f"{pattern} names {count:,} shards; name at most {MOST:,}")
    return ["".join(one) for one in itertools.product(*choices)]


def _choices(piece: str, number: int) -> list[str]:
    if number % 2 == 0:
        return [piece]
    if not (span := RANGE.fullmatch(piece)):
        return piece.split(",")
    first, last = map(int, span.groups())
    if not first <= last < first + MOST:
        raise UserError(
            f"{{{piece}}} names {max(0, last - first + 1):,} shards; count up, at most {MOST:,}"
        )
    return [f"{n:0{len(span[1])}d}" for n in range(first, last + 1)]
