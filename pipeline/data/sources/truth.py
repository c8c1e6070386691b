"""Read the classes of validation images in a flat folder from a list.

Such lists have many formats. Each list is read correctly or refused, because wrong classes would
train a wrong network without an error. A line is `NAME CLASS`: the name of the image, with or
without its suffix, and the name or number of its class. Numbers count from 0 in the order of names.
"""

from __future__ import annotations

import codecs
import csv
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.data.sources.tree import image
from pipeline.display.errors import UserError
from slurm import files

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
Labels = dict[str, int]
NUMBER = re.compile(r"[-+]?[0-9]{1,9}")
LARGEST_MEMBER = 2**26  # bytes read of a file of the development kit; a real one has a megabyte
HEADER = ("imageid", "predictionstring")  # names of the columns in Kaggle's list


@dataclass(frozen=True)
class Entry:
    """A line of a list: line number, name of the image without suffix, class as written."""

    line: int
    name: str
    what: str


def text(path: Path) -> str:
    """Return the text of a list, in any encoding of Unicode.

    Raises:
        UserError: the list is not a file, or not text.
    """
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable") from None
    if content is None:
        raise UserError(f"{path} is not a file; put the list of the validation classes there")
    if (found := decoded(content)) is None:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8")
    return found


def decoded(content: bytes) -> str | None:
    """Return text in UTF-8, or in the encoding of its byte-order mark; None if it is not text."""
    coding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        found = content.decode(coding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in found else found


def entries(path: Path) -> list[Entry]:
    """Return the entries of a list; fields are separated by blanks, commas, semicolons or tabs.

    Raises:
        UserError: a line is not `NAME CLASS`, or the list is empty.
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
    """Return the fields of a line; of Kaggle's second field (class and boxes) only the class."""
    line = line.strip()
    mark = next((mark for mark in ",;\t" if mark in line), None)
    if mark:
        try:
            fields = next(csv.reader([line], delimiter=mark, skipinitialspace=True))
        except csv.Error:  # a field of more than 128 KiB
            return [line]
    else:
        fields = line.split(None, 1)
        named, _, last = line.rpartition(" ")
        if image(named.strip()) and not image(fields[0]):  # the name contains blanks
            fields = [named, last]
    fields = [composed(field.strip("\"' ")) for field in fields]
    if len(fields) == 2 and re.fullmatch(r"(\S+ +-?\d+ +-?\d+ +-?\d+ +-?\d+ *)+", fields[1]):
        fields[1] = fields[1].split()[0]
    return fields


def composed(name: str) -> str:
    """Return a name in Unicode form NFC, because file systems and editors differ in the form."""
    return unicodedata.normalize("NFC", name)


def stem(name: str) -> str:
    """Return a name without folder and suffix, for comparing lists with images."""
    last = composed(name.replace("\\", "/").rpartition("/")[2])
    return last.rpartition(".")[0] if image(last) else last


def labels(path: Path, found: list[Entry], classes: tuple[str, ...], images: set[str]) -> Labels:
    """Return the label of each image that a list names; other lines are ignored.

    Args:
        path: the list, for messages.
        found: its entries.
        classes: names of the classes, by label.
        images: names of the images without suffix.

    Raises:
        UserError: a class is unknown or out of range, or an image has two classes.
    """
    classes = tuple(map(composed, classes))
    if found[0].name not in images and not _is_class(found[0].what, classes):
        found = found[1:]  # the first line names the columns
    _check_base(path, found, classes)
    known = {name: label for label, name in enumerate(classes)}
    labels: Labels = {}
    for entry in found:
        if entry.name not in images:
            continue
        label = known.get(entry.what)
        if label is None:
            label = _number(path, entry, len(classes))
        if labels.setdefault(entry.name, label) != label:
            raise UserError(
                f"{path}, line {entry.line}: {entry.name} is there before, with another class; "
                "leave one"
            )
    return labels


def _is_class(what: str, classes: tuple[str, ...]) -> bool:
    return what in classes or re.fullmatch(r"[-+]?[\d.]+", what) is not None


def _check_base(path: Path, found: list[Entry], classes: tuple[str, ...]) -> None:
    """Refuse numbers that start at 1, because every class would be off by one."""
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
        raise UserError(f"{where} is neither a folder of train/ nor a whole number; correct it")
    if not 0 <= int(entry.what) < count:
        raise UserError(f"{where} is none of the {count} classes, 0 to {count - 1}; correct it")
    return int(entry.what)


def _short(what: str) -> str:
    return ascii(what if len(what) <= 60 else f"{what[:60]}…")


def packed_kit(archive: Path, name: str) -> list[Entry]:
    """Read the development kit from its archive.

    Args:
        archive: the path of the archive.
        name: the name of the kit's folder in the archive.

    Raises:
        UserError: the archive is damaged.
    """
    with TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        try:
            with files.opened(archive) as packed, tarfile.open(fileobj=packed) as tar:
                for file in ("ILSVRC2012_validation_ground_truth.txt", "meta.mat"):
                    member = tar.extractfile(f"{name}/data/{file}")
                    assert member is not None
                    (Path(folder) / "data" / file).write_bytes(member.read(LARGEST_MEMBER))
            return list(kit(Path(folder)))
        except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError, UserError):
            raise UserError(
                f"{archive} is not a development kit, or is damaged; get it again"
            ) from None


def kit(folder: Path) -> Iterator[Entry]:
    """Read the development kit, whose class numbers are neither sorted nor counted from 0.

    Raises:
        UserError: a file is missing or damaged.
    """
    from scipy.io import loadmat

    path = folder / "data" / "ILSVRC2012_validation_ground_truth.txt"
    meta = folder / "data" / "meta.mat"
    lines = text(path).split("\n")
    try:
        with files.opened(meta) as file:
            synsets = loadmat(file, squeeze_me=True)["synsets"]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # loadmat raises many kinds of errors on other files
        raise UserError(
            f"{meta} cannot be read ({type(error).__name__}); extract the development kit again"
        ) from None
    number = 0
    for line_number, line in enumerate(lines, start=1):
        own = line.strip()
        if not own:
            continue
        number += 1
        if not own.isdecimal() or int(own) not in names:
            raise UserError(
                f"{path}, line {line_number}: {_short(own)} is not a class of {meta}; extract it "
                "again"
            )
        yield Entry(line_number, f"ILSVRC2012_val_{number:08d}", names[int(own)])
