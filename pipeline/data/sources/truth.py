"""The classes of validation images that lie in one folder, from a list beside it.

People write such lists in many ways; each is read rightly or refused in one line, for a list that
is misread trains something else. A line is `NAME CLASS`: what the image is called, with
its extension or without, and the name of its class or its number, from 0 in the order of names.
"""

from __future__ import annotations

import codecs
import csv
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.data.sources.tree import image
from pipeline.display.errors import UserError

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
Labels = dict[str, int]
NUMBER = re.compile(r"[-+]?[0-9]{1,9}")
HEADER = ("imageid", "predictionstring")  # of Kaggle's list


@dataclass(frozen=True)
class Entry:
    """A line of a list: its number, the image without extension, and its class as it is written."""

    line: int
    name: str
    what: str


def text(path: Path) -> str:
    """Return the content of a list, whatever Unicode it is written in.

    Raises:
        UserError: it is no file, or no text.
    """
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable") from None
    if content is None:
        raise UserError(f"{path} is no file; put the list of the validation classes there")
    coding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        found = content.decode(coding)
    except UnicodeDecodeError:
        found = "\0"
    if "\0" in found:
        raise UserError(f"{path} is no UTF-8 text; save it as UTF-8")
    return found


def entries(path: Path) -> list[Entry]:
    """Return the lines of a list `NAME CLASS`; separated by blanks, commas, semicolons or tabs.

    Raises:
        UserError: a line is none, or there is none.
    """
    found: list[Entry] = []
    for number, line in enumerate(text(path).splitlines(), start=1):
        fields = _fields(line)
        if not fields or (not found and tuple(f.lower() for f in fields) == HEADER):
            continue
        if len(fields) != 2 or not all(fields):
            raise UserError(f"{path}, line {number}: {_short(line)} is not a name and a class")
        found.append(Entry(number, stem(fields[0]), fields[1]))
    if not found:
        raise UserError(f"{path} names no image; it needs a line `NAME CLASS` for each")
    return found


def _fields(line: str) -> list[str]:
    """Return the fields of a line; of Kaggle's second one, class and boxes, only the class."""
    line = line.strip()
    mark = next((mark for mark in ",;\t" if mark in line), None)
    if mark:
        fields = next(csv.reader([line], delimiter=mark, skipinitialspace=True))
    else:
        fields = line.split(None, 1)
        named, _, last = line.rpartition(" ")
        if image(named.strip()) and not image(fields[0]):  # a name with blanks in it
            fields = [named, last]
    fields = [field.strip("\"' ") for field in fields]
    if len(fields) == 2 and re.fullmatch(r"(\S+ +-?\d+ +-?\d+ +-?\d+ +-?\d+ *)+", fields[1]):
        fields[1] = fields[1].split()[0]
    return fields


def stem(name: str) -> str:
    """Return a name without folder and extension, by which lists and images are compared."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return last.rpartition(".")[0] if image(last) else last


def labels(path: Path, found: list[Entry], classes: tuple[str, ...], images: set[str]) -> Labels:
    """Return the label of each image that a list names; lines of other images say nothing.

    Args:
        path: the list, for what is said.
        found: its lines.
        classes: names of the classes, by label.
        images: names of the images without extension.

    Raises:
        UserError: a class is unknown or out of range, or an image is there with two.
    """
    if found[0].name not in images and not _is_class(found[0].what, classes):
        found = found[1:]  # the names of the columns
    _check_base(path, found, classes)
    known = {name: label for label, name in enumerate(classes)}
    told: Labels = {}
    for entry in found:
        if entry.name not in images:
            continue
        label = known.get(entry.what)
        if label is None:
            label = _number(path, entry, len(classes))
        if told.setdefault(entry.name, label) != label:
            raise UserError(
                f"{path}, line {entry.line}: {entry.name} is there before, with another class; "
                "leave one"
            )
    return told


def _is_class(what: str, classes: tuple[str, ...]) -> bool:
    return what in classes or re.fullmatch(r"[-+]?[\d.]+", what) is not None


def _check_base(path: Path, found: list[Entry], classes: tuple[str, ...]) -> None:
    """Refuse numbers that begin at 1: they are one off, and the last is no class or is not used."""
    numbers = {int(e.what) for e in found if NUMBER.fullmatch(e.what) and e.what not in classes}
    if numbers and min(numbers) > 0 and max(numbers) <= len(classes):
        raise UserError(
            f"{path}: its classes go from {min(numbers)} to {max(numbers)}, but the "
            f"{len(classes)} there are from 0 to {len(classes) - 1}; if it counts from 1, take 1 "
            "off each, else write the names of the classes instead"
        )


def _number(path: Path, entry: Entry, count: int) -> int:
    where = f"{path}, line {entry.line}: {_short(entry.what)}"
    if not NUMBER.fullmatch(entry.what):
        raise UserError(f"{where} is no folder of train/ and no whole number; correct it")
    if not 0 <= int(entry.what) < count:
        raise UserError(f"{where} is none of the {count} classes, 0 to {count - 1}; correct it")
    return int(entry.what)


def _short(what: str) -> str:
    return ascii(what if len(what) <= 60 else f"{what[:60]}…")


def packed_kit(archive: Path, name: str) -> list[Entry]:
    """Read the development kit from the archive that it is distributed as.

    Args:
        archive: the file.
        name: of the folder in it.

    Raises:
        UserError: it is damaged.
    """
    with TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        try:
            with tarfile.open(archive) as tar:
                for file in ("ILSVRC2012_validation_ground_truth.txt", "meta.mat"):
                    content = tar.extractfile(f"{name}/data/{file}")
                    assert content is not None
                    (Path(folder) / "data" / file).write_bytes(content.read())
            return list(kit(Path(folder)))
        except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError, UserError):
            raise UserError(f"{archive} is no development kit, or damaged; get it anew") from None


def kit(folder: Path) -> Iterator[Entry]:
    """Read the development kit, whose own numbers are neither sorted nor from 0.

    Raises:
        UserError: a file of it is missing, or not what its authors made.
    """
    from scipy.io import loadmat

    path = folder / "data" / "ILSVRC2012_validation_ground_truth.txt"
    meta = folder / "data" / "meta.mat"
    lines = text(path).split("\n")
    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # loadmat raises many kinds for what is no such file
        raise UserError(
            f"{meta} cannot be read ({type(error).__name__}); extract the development kit anew"
        ) from None
    number = 0
    for place, line in enumerate(lines, start=1):
        own = line.strip()
        if not own:
            continue
        number += 1
        if not own.isdecimal() or int(own) not in names:
            raise UserError(
                f"{path}, line {place}: {_short(own)} is no class of {meta}; extract it anew"
            )
        yield Entry(place, f"ILSVRC2012_val_{number:08d}", names[int(own)])
