"""Read Hugging Face data sets: parquet files of encoded images, or a folder of `save_to_disk`.

Layout: huggingface.co/docs/datasets/image_dataset and …/repository_structure.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.sources import splits
from pipeline.data.sources.base import Listing
from pipeline.data.sources.classes import Label, Labelled, labelled
from pipeline.data.sources.tables import (
    Table,
    features,
    holds_flags,
    holds_images,
    holds_labels,
    open_table,
)
from pipeline.data.sources.tree import Row, Tree, fact, tree
from pipeline.display.errors import UserError
from slurm import files

if TYPE_CHECKING:
    from pipeline.config.data import Parquet as Settings

STATE = "state.json"  # in the folder of a saved data set
IMAGES = "encoded images (bytes, or {bytes, path})"
CLASSES = "classes (integers, names or booleans)"
SHOWN = 3  # classes that a message names


class Columns(NamedTuple):
    """The columns of images and labels; the same in all files."""

    image: str
    label: str
    kinds: tuple[str, str]
    classes: tuple[str, ...]

    def __str__(self) -> str:
        image, label = map(_short, self.kinds)
        some = ", ".join(self.classes[:SHOWN]) + ", …" * (len(self.classes) > SHOWN)
        named = f" with the classes {some}" if some else ""
        return f"the columns {self.image} ({image}) and {self.label} ({label}){named}"


class Parquet:
    """Images in rows of tables; the name of an image is `FILE/ROW`."""

    def __init__(self, data: Settings) -> None:
        assert data.root is not None
        self.root, self._data = Path(data.root), data
        self._open: dict[str, Table] = {}

    def count(self) -> int:
        files = [name for names in self._files[0].values() for name in names]
        self._columns(self._table(files[0]))
        return sum(sum(self._table(name).groups) for name in files)

    def listing(self) -> Listing:
        files, passed = self._files
        first = next(iter(files.values()))[0]
        columns = self._columns(self._table(first))
        found = Listing(classes=(), splits={})
        rows: Labelled = {split: self._rows(files[split], columns, first, found) for split in files}
        classes, items = labelled(rows, columns.classes, self.root)
        used = [fact(self.root, name) for names in files.values() for name in names]
        return Listing(
            classes=classes,
            splits=items,
            passed=passed,
            others=used,
            groups=found.groups,
            folders=self._tree.folders,
        )

    def read(self, name: str) -> bytes:
        import pyarrow

        file, _, row = name.rpartition("/")
        table = self._table(file)
        try:
            data = table.image(self._image_column(table), int(row))
        except (pyarrow.ArrowException, OSError, StopIteration, IndexError) as error:
            raise OSError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from None
        if data is None:
            raise OSError("the table holds no image in this row, at most the path of one")
        return data

    def _table(self, name: str) -> Table:
        """Return an open file; memory-mapped files and the last of the other files stay open."""
        if name not in self._open:
            if name.endswith(".parquet"):
                self._open.clear()
            self._open[name] = open_table(self.root / name)
        return self._open[name]

    def _rows(
        self, files: list[str], columns: Columns, first: str, found: Listing
    ) -> list[tuple[str, Label]]:
        """Return the items of a split; add to the listing which rows are read together.

        `columns` are those of the file `first`; all files must have them.
        """
        rows: list[tuple[str, Label]] = []
        for file in files:
            table = self._table(file)
            if (own := self._columns(table)) != columns:
                differing = f"{own}, and {first} has {columns}"
                raise UserError(
                    f"{self.root / file} has {differing}; point data.root at the files of one data "
                    "set, written alike"
                )
            rows += [(f"{file}/{n}", label) for n, label in enumerate(self._labels(file, columns))]
            if file.endswith(".parquet"):
                begin = 1 + (found.groups[-1] if found.groups else -1)
                for number, size in enumerate(table.groups, start=begin):
                    found.groups.extend([number] * size)
        return rows

    def _labels(self, file: str, columns: Columns) -> list[Label]:
        import pyarrow

        where = f"{self.root / file}: column {columns.label}"
        try:
            found = self._table(file).column(columns.label)
        except UnicodeDecodeError:
            raise UserError(f"{where} holds names that are no UTF-8; write it again") from None
        except (pyarrow.ArrowException, OSError):
            raise UserError(f"{where} is damaged; get it again") from None
        if None in found:
            raise UserError(f"{where} is empty in row {found.index(None)}; leave that row out")
        return found

    def _columns(self, table: Table) -> Columns:
        """Return the columns of images and labels of a file.

        Raises:
            UserError: there is no column of images or labels, or more than one.
        """
        image, label = self._image_column(table), self._label_column(table)
        kinds = tuple(str(table.schema.field(name).type) for name in (image, label))
        return Columns(image, label, kinds, _names(table, label))  # type: ignore[arg-type]

    def _image_column(self, table: Table) -> str:
        fit = [field.name for field in table.schema if holds_images(field.type)]
        noted = [name for name in fit if _type(table, name) == "Image"]
        likely = noted or [name for name in fit if name in ("image", "img")]
        return self._chosen("image_column", IMAGES, table, fit, likely)

    def _label_column(self, table: Table) -> str:
        fit = [field.name for field in table.schema if holds_labels(field.type)]
        noted = [name for name in fit if _type(table, name) == "ClassLabel"]
        likely = noted or [name for name in fit if name in ("label", "labels", "class")]
        likely = likely or [name for name in fit if not holds_flags(table.schema.field(name).type)]
        return self._chosen("label_column", CLASSES, table, fit, likely)

    def _chosen(self, key: str, what: str, table: Table, fit: list[str], likely: list[str]) -> str:
        wanted, some = getattr(self._data, key), list(dict.fromkeys(likely or fit))
        name = some[0] if wanted is None and len(some) == 1 else wanted
        if name in fit:
            if table.schema.names.count(name) > 1:
                raise UserError(f"{self.root} has several columns named {name}; rename all but one")
            return str(name)
        there = ", ".join(f"{field.name} ({_short(field.type)})" for field in table.schema)
        if wanted is not None:
            raise UserError(
                f"data.{key}={wanted} is not a column of {what} in {self.root}; there are: {there}"
            )
        if not fit:
            raise UserError(f"{self.root} has no column of {what}; there are: {there}")
        several = ", ".join(some)
        raise UserError(f"{self.root} has several columns of {what}: {several}; set data.{key}")

    @cached_property
    def _tree(self) -> Tree:
        if not self.root.is_dir():
            raise UserError(f"{self.root} is not a folder; data.root needs .parquet files in it")
        saved = (self.root / STATE).exists() or (self.root / "dataset_dict.json").exists()
        return tree(self.root, False, {".arrow" if saved else ".parquet"})

    @cached_property
    def _files(self) -> tuple[dict[str, list[str]], list[Row]]:
        """Return the files of each split, and the ignored files."""
        there = [file.name for file in self._tree.images]
        used = [name for name in there if name.endswith(".parquet") or self._is_saved(name)]
        if not used:
            raise UserError(
                f"{self.root} holds no .parquet file, nor a data set that was saved to disk "
                f"({STATE}); point data.root at the folder of one"
            )
        rest = sorted(set(there) - set(used))
        passed = [{"name": name, "reason": f"not named in {STATE}"} for name in rest]
        found, others = splits.divide(self.root, used, self._data.val_fraction)
        return found, [*self._tree.passed, *passed, *others]

    def _is_saved(self, name: str) -> bool:
        """Whether an arrow file belongs to the data set; `map` leaves other files beside it."""
        folder, _, file = name.rpartition("/")
        path = self.root / folder / STATE
        try:
            rows: list[dict[str, Any]] = json.loads(files.read(path))["_data_files"]
            return file in [row["filename"] for row in rows]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path} is damaged; save the data set again") from None


def _type(table: Table, name: str) -> str:
    return str(_noted(table, name).get("_type", ""))


def _names(table: Table, label: str) -> tuple[str, ...]:
    """Return the names of classes that the metadata of a column has; none if they are damaged."""
    names = _noted(table, label).get("names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def _noted(table: Table, name: str) -> dict[str, Any]:
    noted = features(table.schema).get(name)
    return noted if isinstance(noted, dict) else {}


def _short(kind: Any) -> str:
    return " ".join(str(kind).split())[:40]
