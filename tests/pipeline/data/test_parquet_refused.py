"""Test that `parquet` refuses tables that are damaged or lack images or classes, in one line."""

import sys

import pyarrow as pa
import pytest

from pipeline.display.errors import UserError
from tests.pipeline.data.tables import CLASSES, both, found, saved, table, write


def one(content, **more):
    """Return a function that writes a table as the only file of a folder."""
    return lambda root: write(root / "a.parquet", content, **more)


def cut(root):
    write(root / "a.parquet", table())
    (root / "a.parquet").write_bytes((root / "a.parquet").read_bytes()[:-20])


def spoilt(root):
    write(root / "a.parquet", table())
    data = bytearray((root / "a.parquet").read_bytes())
    data[200:3000] = b"\xff" * 2800
    (root / "a.parquet").write_bytes(data)


def no_utf8(root):
    write(root / "a.parquet", table())
    (root / "a.parquet").rename(root / "\udce9.parquet")


def two_kinds(root):
    write(root / "a.parquet", table())
    write(root / "b.parquet", table(noted={**CLASSES, "label": {"names": ["x", "y"]}}))


def saved_and_cut(root):
    saved(root, table())
    path = root / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-900])


def of_an_unread_state(root):
    saved(root, table())
    (root / "state.json").write_text("{")


WRONG = {
    "no folder": (lambda root: root.rmdir(), "is not a folder"),
    "nothing": (lambda root: None, "holds no .parquet file, nor a data set"),
    "no image": (
        one(pa.table({"id": [1], "text": ["x"]})),
        r"no column of encoded images \(bytes, or \{bytes, path\}\); there are: id \(int64\), text \(string\)",
    ),
    "no label": (
        one(table().drop(["label"])),
        r"no column of classes .*; there are: image \(struct",
    ),
    "label of fractions": (
        one(table(noted=None, labels=[0.0, 1.0] * 4)),
        r"no column of classes \(integers, names or booleans\); there are: .* label \(double\)",
    ),
    "cut off": (cut, "a.parquet is damaged or cut off"),
    "damaged": (spoilt, "a.parquet: column label is damaged; get it again"),
    "name of a file": (no_utf8, "is not UTF-8, which pyarrow needs; rename it"),
    "link to nothing": (
        lambda root: (root / "a.parquet").symlink_to(root / "nowhere"),
        "a.parquet: No such file or directory",
    ),
    "arrow cut off": (saved_and_cut, "00001.arrow is damaged or cut off"),
    "state": (of_an_unread_state, "state.json is damaged; save the data set again"),
    "other classes": (two_kinds, r"b.parquet has the columns .* and a.parquet has"),
    "one name for two columns": (
        one(table().append_column("label", pa.array([0.5] * 8))),
        "has several columns named label; rename all but one",
    ),
    "label too large": (one(table(labels=[0, 1, 2] + [0] * 5)), "a.parquet/2 has the label 2, but"),
    "an unknown class": (one(table(labels=[0, 1, -1] + [0] * 5)), "its class is unknown"),
    "no label in a row": (one(table(labels=[0, None] * 4)), "column label is empty in row 1"),
    "a class without images": (one(table(labels=[0] * 8)), "class 'dog' has no image to train on"),
    "no rows": (one(table()[:0]), "has no images; add some"),
    "one class": (one(table(noted=None, labels=["a"] * 8)), "images of one class only"),
    "one name for two classes": (
        one(table(noted={**CLASSES, "label": {"_type": "ClassLabel", "names": ["cat", "cat"]}})),
        "two classes of .* are called 'cat'; merge or rename one",
    ),
    "two spellings": (one(table(noted=None, labels=["a", "A"] * 4)), "differ only in case"),
    "control character": (
        one(table(noted=None, labels=["a", "\n"] * 4)),
        "has a control character",
    ),
    "no UTF-8": (
        one(table(noted=None, labels=pa.array([b"a", b"\xe9"] * 4).view(pa.string()))),
        "names that are no UTF-8",
    ),
    "splits": (lambda root: both(root, table(), table()), "launch with data.val_fraction=null"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, kind):
    make, words = WRONG[kind]
    make(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        images = found(tmp_path, 0.25)
        images.count()
        images.listing()
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_splits_with_different_columns_are_refused_with_the_difference(tmp_path):
    both(tmp_path, table(), table(labels=pa.array([0, 1] * 4, pa.int32())))
    with pytest.raises(UserError) as error:
        found(tmp_path).listing()
    assert "label (int32) with the classes cat, dog, and data/train-00000" in str(error.value)
    assert "label (int64) with the classes cat, dog; point" in str(error.value)


def test_one_split_alone_is_refused_with_the_cure(tmp_path):
    write(tmp_path / "train.parquet", table())
    with pytest.raises(UserError, match=r"no validation file by its name.*data.val_fraction=0.1"):
        found(tmp_path).count()


def test_without_pyarrow_the_error_names_the_cure(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow: `pip install pyarrow`"):
        found(tmp_path, 0.25).count()
