"""Tables of Hugging Face: columns, classes and splits found; rows read a few at a time; damage named."""

import os
import sys

import pyarrow as pa
import pytest

from pipeline.data.sources.choose import source
from pipeline.display.errors import UserError
from tests.launcher import no_longer_than
from tests.pipeline.data.preparing import settings
from tests.pipeline.data.tables import CLASSES, IMAGES, STRUCT, both, saved, table, write


def found(root, val_fraction=None, image_column=None, label_column=None):
    return source(
        settings(
            name="parquet", root=str(root), val_fraction=val_fraction,
            image_column=image_column, label_column=label_column,
        )
    )  # fmt: skip


def labels(listing, split):
    return [listing.classes[item.label] for item in listing.splits[split]]


NAMES = [
    ("data/train-00000-of-00001", "data/validation-00000-of-00001"),
    ("default/train/0000", "default/test/0000"),
    ("Train", "dev"),
    ("my_training_set0", "my_valid1"),
]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_the_splits_are_told_by_the_names_of_the_files(tmp_path, names):
    both(tmp_path, table(), table(IMAGES[8:]), names)
    images = found(tmp_path)
    listing = images.listing()
    assert images.count() == 12
    assert listing.classes == ("cat", "dog")
    assert labels(listing, "train") == ["cat", "dog"] * 4
    assert [images.read(item.name) for item in listing.splits["val"]] == IMAGES[8:]
    assert list(listing.groups) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4]


def test_test_files_beside_validation_files_are_passed_over(tmp_path):
    both(tmp_path, table(), table(IMAGES[8:]))
    write(tmp_path / "data" / "test-0.parquet", table(labels=[-1] * 8))
    (tmp_path / "README.md").write_text("a card")
    passed = {row["name"]: row["reason"] for row in found(tmp_path).listing().passed}
    assert passed == {
        "README.md": "no .parquet by its name",
        "data/test-0.parquet": "of a third split",
    }


@pytest.mark.parametrize("divided", [True, False])
def test_a_data_set_that_was_saved_to_disk(tmp_path, divided):
    root = tmp_path / "set"
    if divided:
        saved(root / "train", table())
        saved(root / "test", table(IMAGES[8:]))
        (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    else:
        saved(root, table(IMAGES))
    images = found(root, None if divided else 0.25)
    listing = images.listing()
    items = [item for split in listing.splits.values() for item in split]
    assert [images.read(item.name) for item in items] == IMAGES
    assert [images.read(item.name) for item in reversed(items)] == IMAGES[::-1]
    assert not listing.groups
    assert {row["reason"] for row in listing.passed} == {
        "not named in state.json", "no .arrow by its name",
    }  # fmt: skip


COLUMNS = {
    "names": (table(noted=None, labels=list("baabbaab")), ("a", "b")),
    "numbers": (table(noted=None, labels=[10, 9, 9, 10, 9, 9, 9, 10]), ("9", "10")),
    "categories": (
        table(noted=None, labels=pa.array(list("baabbaab")).dictionary_encode()),
        ("a", "b"),
    ),
    "bytes alone": (
        pa.table(
            {"jpg": pa.array(IMAGES[:8], pa.large_binary()), "label": [0, 1] * 4, "id": [3] * 8}
        ),
        ("0", "1"),
    ),
    "views": (
        pa.table(
            {
                "image": pa.array(IMAGES[:8], pa.binary_view()),
                "label": pa.array(list("baabbaab"), pa.string_view()),
            }
        ),
        ("a", "b"),
    ),
    "one of two": (table(coarse=[7] * 8), ("cat", "dog")),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_and_classes_are_found(tmp_path, kind):
    content, classes = COLUMNS[kind]
    write(tmp_path / "a.parquet", content)
    images = found(tmp_path, 0.25)
    listing = images.listing()
    assert listing.classes == classes
    assert [images.read(item.name) for item in listing.splits["all"]] == IMAGES[:8]


def test_booleans_are_classes_where_no_other_column_has_them(tmp_path):
    yes, no = tmp_path / "yes", tmp_path / "no"
    flags = table(noted=None, labels=[True, False] * 4)
    write(yes / "a.parquet", flags)
    listing = found(yes, 0.25).listing()
    assert listing.classes == ("False", "True")
    assert labels(listing, "all") == ["True", "False"] * 4
    named = table(noted=None).rename_columns(["image", "kind"])
    write(
        no / "a.parquet", named.append_column("cropped", pa.array([True, True, False, False] * 2))
    )
    assert found(no, 0.25).listing().classes == ("0", "1")
    assert found(no, 0.25, None, "cropped").listing().classes == ("False", "True")


def test_of_several_columns_one_can_be_named(tmp_path):
    noted = {"fine": CLASSES["label"], "coarse": {"_type": "ClassLabel", "names": ["animal", "x"]}}
    content = table(noted=noted).rename_columns(["image", "fine"])
    content = content.append_column("coarse", pa.array([1, 0] * 4))
    content = content.replace_schema_metadata(table(noted=noted).schema.metadata)
    write(tmp_path / "a.parquet", content)
    assert found(tmp_path, 0.25, None, "coarse").listing().classes == ("animal", "x")
    with pytest.raises(
        UserError, match=r"several columns of classes .*: fine, coarse; set data.label_c"
    ):
        found(tmp_path, 0.25).count()
    with pytest.raises(UserError, match=r"data.label_column=age is not a column .* image \(struct"):
        found(tmp_path, 0.25, None, "age").count()


@pytest.mark.parametrize("names", [5, "cat", None, ["cat", 5], {"cat": 0}, [["cat"], ["dog"]]])
def test_names_of_classes_that_are_no_list_of_texts_are_not_used(tmp_path, names):
    write(tmp_path / "a.parquet", table(noted={"label": {"_type": "ClassLabel", "names": names}}))
    assert found(tmp_path, 0.25).listing().classes == ("0", "1")


@pytest.mark.parametrize("noted", [5, ["label"], {"label": 5}, {"label": ["ClassLabel"]}])
def test_metadata_of_any_shape_is_survived(tmp_path, noted):
    write(tmp_path / "a.parquet", table(noted=noted))
    assert found(tmp_path, 0.25).listing().classes == ("0", "1")


def one(content, **more):
    """Return what writes one file."""
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
        lambda root: (root / "a.parquet").symlink_to("/nowhere"),
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
    "nobody knows": (one(table(labels=[0, 1, -1] + [0] * 5)), "nobody told its class"),
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
def test_what_is_wrong_is_refused_in_one_line(tmp_path, kind):
    make, words = WRONG[kind]
    make(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        images = found(tmp_path, 0.25)
        images.count()
        images.listing()
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_splits_of_two_kinds_name_the_file_of_the_first_and_what_differs(tmp_path):
    both(tmp_path, table(), table(labels=pa.array([0, 1] * 4, pa.int32())))
    with pytest.raises(UserError) as error:
        found(tmp_path).listing()
    assert "label (int32) with the classes cat, dog, and data/train-00000" in str(error.value)
    assert "label (int64) with the classes cat, dog; point" in str(error.value)


def test_one_split_alone_is_refused_with_the_cure(tmp_path):
    write(tmp_path / "train.parquet", table())
    with pytest.raises(UserError, match=r"no validation file by its name.*data.val_fraction=0.1"):
        found(tmp_path).count()


def test_without_pyarrow_the_cure_is_told(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow: `pip install pyarrow`"):
        found(tmp_path, 0.25).count()


def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """A file of one part is not read as a whole for one of its rows."""
    images = [bytes([n]) * 100_000 for n in range(200)]
    write(tmp_path / "a.parquet", table(images), rows=200)
    reader = found(tmp_path, 0.25)
    before = pa.default_memory_pool().max_memory()
    assert reader.read("a.parquet/70") == images[70]
    assert reader.read("a.parquet/199") == images[199]
    assert reader.read("a.parquet/3") == images[3]
    assert pa.default_memory_pool().max_memory() - before < 15e6


def test_a_column_whose_name_begins_alike_is_not_read_in_its_place(tmp_path):
    whole = table()
    others = pa.array([{"bytes": data, "path": ""} for data in reversed(IMAGES[:8])], STRUCT)
    content = whole.add_column(0, "image.old", others)
    both(tmp_path, content, content)
    images = found(tmp_path, image_column="image")
    assert [images.read(item.name) for item in images.listing().splits["val"]] == IMAGES[:8]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("[" * 100_000)])
def test_a_state_that_cannot_be_read_keeps_nobody(tmp_path, make):
    saved(tmp_path / "train", table())
    (tmp_path / "train" / "state.json").unlink()
    make(tmp_path / "train" / "state.json")
    (tmp_path / "dataset_dict.json").write_text("{}")
    with (
        no_longer_than(60),
        pytest.raises(UserError, match=r"state.json is damaged; save the data"),
    ):
        found(tmp_path).count()
