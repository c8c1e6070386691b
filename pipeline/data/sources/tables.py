"""Read Apache Arrow tables: parquet files, and arrow files that Hugging Face saved to disk.

Only requested data is read: a few rows of a parquet column at a time; an arrow file is
memory-mapped. This module needs pyarrow.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from pipeline.display.errors import UserError

ROWS = 64  # rows read from a parquet file at a time


class Table(Protocol):
    """An open file."""

    schema: Any

    @property
    def groups(self) -> list[int]:
        """The number of rows of each row group; row groups are read one after the other."""

    def column(self, name: str) -> list[Any]:
        """Return a whole column."""

    def image(self, column: str, row: int) -> bytes | None:
        """Return the encoded image of a row; None if the file does not hold it."""


def open_table(path: Path) -> Table:
    """Open a table; the suffix decides the format.

    Raises:
        UserError: the file is damaged or cannot be read, or pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise UserError("data=parquet needs pyarrow: `pip install pyarrow`") from None
    try:
        return ParquetFile(path) if path.suffix == ".parquet" else ArrowFile(path)
    except UnicodeEncodeError:  # must come before ValueError, its base class
        raise UserError(
            f"the name of {str(path)!a} is not UTF-8, which pyarrow needs; rename it"
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: {os.strerror(error.errno)}; make it readable") from None
        raise UserError(f"{path} is damaged or cut off ({_line(error)}); get it again") from None


class ParquetFile:
    """A parquet file; only rows in order are fast to read."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
        self.schema = self._file.schema_arrow
        meta = self._file.metadata
        self.groups = [meta.row_group(n).num_rows for n in range(meta.num_row_groups)]
        self._ends = list(accumulate(self.groups))
        self._group, self._first = -1, 0
        self._rows: Any = []
        self._batches: Iterator[Any] = iter(())

    def column(self, name: str) -> list[Any]:
        return self._file.read(columns=[name]).column(name).to_pylist()

    def image(self, column: str, row: int) -> bytes | None:
        group = bisect_right(self._ends, row)
        if group != self._group or row < self._first:
            self._first, self._rows = self._ends[group] - self.groups[group], []
            self._batches = self._file.iter_batches(ROWS, [group], [column], use_threads=False)
        self._group = -1  # after an error the next row is searched again
        while row >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._rows = next(self._batches).column(column)  # "image" selects "image.old", too
        self._group = group
        return _bytes(self._rows, row - self._first)


class ArrowFile:
    """A file of record batches; each row is fast to read, so the file is one row group."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        with pyarrow.memory_map(str(path)) as file:
            reader = pyarrow.ipc.open_stream(file)
            self.schema, self._batches = reader.schema, list(reader)
        for batch in self._batches:
            batch.validate(full=True)  # mapped data is not checked by pyarrow, and can be damaged
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self.groups = self._ends[-1:]

    def column(self, name: str) -> list[Any]:
        return [value for batch in self._batches for value in batch.column(name).to_pylist()]

    def image(self, column: str, row: int) -> bytes | None:
        batch = bisect_right(self._ends, row)
        begin = self._ends[batch] - self._batches[batch].num_rows
        return _bytes(self._batches[batch].column(column), row - begin)


def _bytes(column: Any, row: int) -> bytes | None:
    value = column[row].as_py()
    return value["bytes"] if isinstance(value, dict) else value


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]


def features(schema: Any) -> dict[str, Any]:
    """Return the metadata of Hugging Face: `_type` of each column, and names of a ClassLabel."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def holds_images(kind: Any) -> bool:
    """Whether a column can hold encoded images: bytes, or a struct of bytes and path."""
    from pyarrow import types

    if types.is_struct(kind):
        inside = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
        kind = inside.get("bytes")
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return kind is not None and any(is_(kind) for is_ in binary)


def holds_labels(kind: Any) -> bool:
    """Whether a column can hold classes: integers, strings or booleans."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    return types.is_integer(kind) or holds_flags(kind) or any(is_(kind) for is_ in texts)


def holds_flags(kind: Any) -> bool:
    """Whether a column holds booleans, which are classes only where nothing else can be."""
    from pyarrow import types

    return bool(types.is_boolean(kind))
