"""Test the source `parquet`: it finds columns, classes and splits in tables of Hugging Face."""

import os

import pyarrow as pa
import pytest

from pipeline.display.errors import UserError
from tests.launcher import no_longer_than
from tests.pipeline.data.tables import CLASSES, IMAGES, STRUCT, both, found, saved, table, write


def labels(listing, split):
    return [listing.classes[item.label] for item in listing.splits[split]]


NAMES = [
    ("data/train-00000-of-00001", "data/validation-00000-of-00001"),
    ("default/train/0000", "default/test/0000"),
    ("Train", "dev"),
    ("my_training_set0", "my_valid1"),
]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_splits_follow_from_the_names_of_the_files(tmp_path, names):
    both(tmp_path, table(), table(IMAGES[8:]), names)
    images = found(tmp_path)
    listing = images.listing()
    assert images.count() == 12
    assert listing.classes == ("cat", "dog")
    assert labels(listing, "train") == ["cat", "dog"] * 4
    assert [images.read(item.name) for item in listing.splits["val"]] == IMAGES[8:]
    assert list(listing.groups) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4]


def test_test_files_beside_validation_files_are_ignored(tmp_path):
    both(tmp_path, table(), table(IMAGES[8:]))
    write(tmp_path / "data" / "test-0.parquet", table(labels=[-1] * 8))
    (tmp_path / "README.md").write_text("a card")
    passed = {row["name"]: row["reason"] for row in found(tmp_path).listing().passed}
    assert passed == {
        "README.md": "no .parquet by its name",
        "data/test-0.parquet": "of a third split",
    }


@pytest.mark.parametrize("divided", [True, False])
def test_a_data_set_written_by_save_to_disk_is_read(tmp_path, divided):
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


def test_one_of_several_columns_of_classes_can_be_chosen(tmp_path):
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
def test_class_names_that_are_not_a_list_of_texts_are_ignored(tmp_path, names):
    write(tmp_path / "a.parquet", table(noted={"label": {"_type": "ClassLabel", "names": names}}))
    assert found(tmp_path, 0.25).listing().classes == ("0", "1")


@pytest.mark.parametrize("noted", [5, ["label"], {"label": 5}, {"label": ["ClassLabel"]}])
def test_metadata_of_another_shape_are_ignored(tmp_path, noted):
    write(tmp_path / "a.parquet", table(noted=noted))
    assert found(tmp_path, 0.25).listing().classes == ("0", "1")


def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """To read one row of a file with a single row group, the source does not read the whole file."""
    images = [bytes([n]) * 100_000 for n in range(200)]
    write(tmp_path / "a.parquet", table(images), rows=200)
    reader = found(tmp_path, 0.25)
    before = pa.default_memory_pool().max_memory()
    assert reader.read("a.parquet/70") == images[70]
    assert reader.read("a.parquet/199") == images[199]
    assert reader.read("a.parquet/3") == images[3]
    assert pa.default_memory_pool().max_memory() - before < 15e6


def test_a_column_whose_name_begins_with_the_chosen_one_is_not_read(tmp_path):
    whole = table()
    others = pa.array([{"bytes": data, "path": ""} for data in reversed(IMAGES[:8])], STRUCT)
    content = whole.add_column(0, "image.old", others)
    both(tmp_path, content, content)
    images = found(tmp_path, image_column="image")
    assert [images.read(item.name) for item in images.listing().splits["val"]] == IMAGES[:8]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("[" * 100_000)])
def test_an_unreadable_state_json_is_refused_without_waiting(tmp_path, make):
    saved(tmp_path / "train", table())
    (tmp_path / "train" / "state.json").unlink()
    make(tmp_path / "train" / "state.json")
    (tmp_path / "dataset_dict.json").write_text("{}")
    with (
        no_longer_than(60),
        pytest.raises(UserError, match=r"state.json is damaged; save the data"),
    ):
        found(tmp_path).count()
