"""Test the stage `prep` on parquet tables: rows are checked like files, and changes are counted."""

from pipeline.data.sources import changes
from tests.pipeline.data.preparing import Prepared
from tests.pipeline.data.tables import IMAGES, both, table, write


def prepared(tmp_path, **data):
    root = tmp_path / "set"
    common = {"image_column": None, "label_column": None, "val_fraction": None}
    return root, Prepared(tmp_path, 4, name="parquet", root=str(root), **{**common, **data})


def test_prep_checks_rows_as_it_checks_files(tmp_path):
    """Rows with a broken image, no bytes, or a copy of a validation image are left out with a reason."""
    images = [*IMAGES[:6], IMAGES[8], b"no image", None]
    root, prep = prepared(tmp_path, max_bad=0.5)
    both(root, table(images), table(IMAGES[8:]))
    prep.run()
    first = "data/train-00000-of-00001.parquet"
    assert prep.quarantine() == {
        f"{first}/6": "is also a validation image: data/validation-00000-of-00001.parquet/0",
        f"{first}/7": "no image that Pillow knows",
        f"{first}/8": "cannot be read: the table holds no image in this row, at most the path of one",
    }
    stored = prep.stored("train")
    assert {number: data for number, (data, *_) in stored.items()} == dict(enumerate(IMAGES[:6]))
    assert list(stored) != list(range(6))
    assert [number // 3 for number in stored] in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    assert not prep.remarks()


def test_files_that_come_go_or_change_after_prep_are_counted(tmp_path):
    root, prep = prepared(tmp_path)
    both(root, table(), table(IMAGES[8:]))
    write(root / "data" / "test.parquet", table())
    prep.run()
    assert str(changes.compare(root, prep.folder / changes.FILE, 10)) == ""
    write(root / "data" / "train-00001-of-00002.parquet", table())
    write(root / "data" / "train-00000-of-00001.parquet", table(), rows=4)
    (root / "data" / "README.md").write_text("no data")
    found = changes.compare(root, prep.folder / changes.FILE, 10)
    assert str(found) == "1 added, 1 changed"
