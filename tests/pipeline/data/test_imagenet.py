"""Test the source `imagenet` in folders, and the lists that give classes to validation images."""

import os
from unicodedata import normalize

import numpy as np
import pytest

from pipeline.data.sources.choose import source
from pipeline.display.errors import UserError
from tests.launcher import no_longer_than
from tests.pipeline.data.preparing import encoded, listing, picture, settings

WNIDS = ("n01440764", "n01443537", "n02084071")


@pytest.fixture
def imagenet(tmp_path):
    for wnid in WNIDS:
        (tmp_path / "train" / wnid).mkdir(parents=True)
        (tmp_path / "train" / wnid / "a.JPEG").write_bytes(encoded(picture(1)))
    (tmp_path / "val").mkdir()
    for number in range(1, 4):
        path = tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.write_bytes(encoded(picture(number)))
    return tmp_path


def val_labels(root):
    found = listing(name="imagenet", root=str(root), val_fraction=None)
    assert found.classes == WNIDS
    return [label for _, label in found.splits["val"]]


def test_class_folders_in_val_give_the_classes(imagenet):
    for number, wnid in enumerate((WNIDS[2], WNIDS[0], WNIDS[2]), start=1):
        (imagenet / "val" / wnid).mkdir(exist_ok=True)
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        (imagenet / "val" / name).rename(imagenet / "val" / wnid / name)
    assert val_labels(imagenet) == [0, 2, 2]


def test_the_list_of_kaggle_gives_the_classes(imagenet):
    rows = [f"ILSVRC2012_val_{n:08d},{WNIDS[3 - n]} 1 2 3 4" for n in (3, 1, 2)]
    (imagenet / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    assert val_labels(imagenet) == [2, 1, 0]


@pytest.mark.parametrize("column", [WNIDS, ("0", "1", "2")])
def test_a_list_of_names_and_classes_gives_the_classes(imagenet, column):
    rows = [f"ILSVRC2012_val_{n:08d}.JPEG {column[n % 3]}" for n in (1, 2, 3)]
    (imagenet / "val.txt").write_text("\n".join(rows))
    assert val_labels(imagenet) == [1, 2, 0]


def test_the_development_kit_gives_the_classes(imagenet):
    from scipy.io import savemat

    kit = imagenet / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    own = [(1, WNIDS[1], "b", 0), (2, WNIDS[2], "c", 0), (3, WNIDS[0], "a", 0)]
    full = [(*row[:3], "", row[3]) for row in own]
    kind.insert(3, ("gloss", "O"))
    savemat(kit / "meta.mat", {"synsets": np.array(full, dtype=kind)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n")
    assert val_labels(imagenet) == [0, 1, 2]


def rows(*classes, start=1, separator=" ", end=".JPEG"):
    names = [f"ILSVRC2012_val_{n:08d}{end}" for n in range(start, start + len(classes))]
    return "\n".join(f"{name}{separator}{what}" for name, what in zip(names, classes, strict=True))


ZERO = rows(2, 0, 1)

KAGGLE = "ImageId,PredictionString\n" + rows(
    *(f"{WNIDS[n]} 1 2 3 4" for n in (2, 0, 1)), separator=",", end=""
)

READ = {
    "numbers": ZERO, "names of classes": rows(WNIDS[2], WNIDS[0], WNIDS[1]),
    "blank lines": f"\n{ZERO}\n\n \n", "CRLF": ZERO.replace("\n", "\r\n"), "tabs": ZERO.replace(" ", "\t"),
    "commas": ZERO.replace(" ", ", "), "semicolons": ZERO.replace(" ", ";"), "two blanks": ZERO.replace(" ", "  "),
    "quotes": rows('"2"', '"0"', '"1"', separator=","), "header": "image,label\n" + ZERO.replace(" ", ","),
    "paths": ZERO.replace("ILSVRC", "val/ILSVRC"), "no extension": ZERO.replace(".JPEG", ""),
    "mark": b"\xef\xbb\xbf" + ZERO.encode(), "UTF-16": ZERO.encode("utf-16"), "big-endian": b"\xfe\xff" + ZERO.encode("utf-16-be"),
    "twice the same": ZERO + "\n" + ZERO, "names that are not there": ZERO + "\n" + rows(1, WNIDS[0], "n99999999", start=7),
}  # fmt: skip

UNREAD = {
    "one-based": (rows(3, 1, 2), "its classes go from 1 to 3, but the 3 there are from 0 to 2; if it counts from 1"),
    "one-based, the last not used": (rows(2, 1, 1), "go from 1 to 2, .* counts from 1"),
    "too large": (rows(5, 0, 1), "line 1: '5' is none of the 3 classes, 0 to 2"),
    "negative": (rows(-1, 0, 1), "line 1: '-1' is none of the 3 classes"),
    "huge": (rows("9" * 5000, 0, 1), "line 1: '999.*nor a whole number"),
    "float": (rows("2.0", 0, 1), "line 1: '2.0' is neither a folder of train/ nor a whole number"),
    "unknown class": (rows(WNIDS[2], "n99999999", 0), "line 2: 'n99999999' is neither a folder of train/"),
    "twice": (ZERO + "\n" + rows(0), "line 4: ILSVRC2012_val_00000001 is there before, with another class"),
    "missing": (rows(1, 0), "names no class for ILSVRC2012_val_00000003 in .*/val; add"),
    "other names": (rows(0, 1, 2, start=11), "names no class for .* and 2 more images"),
    "one column": ("ILSVRC2012_val_00000001.JPEG\n", "line 1: 'ILSVRC2012_val_00000001.JPEG' is not a name and a class"),
    "three columns": ("0,ILSVRC2012_val_00000001.JPEG,2\n", "line 1: .* is not a name and a class"),
    "a long field": ("x" * 200_000 + ",0\n" + ZERO, "line 1: 'xxx.* is not a name and a class"),
    "empty": ("", "names no image"), "only a header": ("ImageId,PredictionString\n", "names no image"),
    "UTF-16 without its mark": (ZERO.encode("utf-16-le"), "is not UTF-8 text; save it as UTF-8"),
    "bytes": (b"\xff\x00\x80 1", "is not UTF-8 text"), "folder": (None, "is not a file"),
}  # fmt: skip


def labelled(imagenet, content, name):
    if content is None:
        (imagenet / name).mkdir()
    else:
        (imagenet / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return source(settings(name="imagenet", root=str(imagenet), val_fraction=None))


@pytest.mark.parametrize("name", ["val.txt", "LOC_val_solution.csv"])
@pytest.mark.parametrize("kind", READ)
def test_a_list_is_read_however_it_is_written(imagenet, kind, name):
    images = labelled(imagenet, READ[kind], name)
    assert images.count() > 0
    assert [label for _, label in images.listing().splits["val"]] == [2, 0, 1]


@pytest.mark.parametrize(
    "forms", [("NFD", "NFC", "NFC"), ("NFC", "NFD", "NFC"), ("NFC", "NFC", "NFD")]
)
def test_accents_may_be_written_in_either_form(tmp_path, forms):
    folder, image, listed = forms
    for name in ("caf\u00e9", "tee"):
        path = tmp_path / "train" / normalize(folder, name)
        path.mkdir(parents=True)
        (path / "a.jpg").write_bytes(encoded(picture(1)))
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / normalize(image, "\u00e4.jpg")).write_bytes(encoded(picture(2)))
    content = normalize(listed, "\u00e4.jpg caf\u00e9\n").encode("utf-16")
    images = labelled(tmp_path, content, "val.txt")
    assert [label for _, label in images.listing().splits["val"]] == [0]


@pytest.mark.parametrize("coded", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_the_list_of_kaggle_is_read_however_it_is_saved(imagenet, coded, separator):
    content = KAGGLE.replace(",", separator).replace("\n", "\r\n").encode(coded)
    images = labelled(imagenet, content, "LOC_val_solution.csv")
    assert [label for _, label in images.listing().splits["val"]] == [2, 0, 1]


@pytest.mark.parametrize("kind", UNREAD)
def test_a_list_that_is_wrong_is_refused_at_launch_in_one_line(imagenet, kind):
    content, words = UNREAD[kind]
    images = labelled(imagenet, content, "val.txt")
    for asked in (images.count, images.listing):
        with pytest.raises(UserError, match=words) as error:
            asked()
        assert str(imagenet / "val.txt") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ("3\n1\n7\n", "line 3: '7' is not a class"),
        ("1\nx\n2", "line 2: 'x' is not a class"),
        ("1\n2", "names no class for"),
    ],
)
def test_a_development_kit_that_is_wrong_is_refused(imagenet, truth, words):
    from scipy.io import savemat

    data = imagenet / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    images = source(settings(name="imagenet", root=str(imagenet), val_fraction=None))
    with pytest.raises(UserError, match=r"ground_truth.txt is not a file"):
        images.count()
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    with pytest.raises(
        UserError, match=r"meta.mat cannot be read .*extract the development kit again"
    ):
        images.count()
    synsets = [(n, wnid) for n, wnid in enumerate(WNIDS, start=1)]
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O")]
    savemat(data / "meta.mat", {"synsets": np.array(synsets, dtype=kind)})
    with pytest.raises(UserError, match=words):
        images.count()


@pytest.mark.parametrize(
    ("second", "refused"),
    [
        (rows(2, 1, 0), "ILSVRC2012_val_00000002"),
        (rows(WNIDS[1], WNIDS[0], WNIDS[1]), "ILSVRC2012_val_00000001"),
        (ZERO, None),
        (rows(2, 0), None),
        ("a list of another form", None),
        (rows(3, 1, 2), None),
    ],
)
def test_two_lists_that_contradict_each_other_are_refused(imagenet, second, refused):
    images = labelled(imagenet, KAGGLE, "LOC_val_solution.csv")
    (imagenet / "val.txt").write_text(second)
    if refused is None:
        assert [item.label for item in images.listing().splits["val"]] == [2, 0, 1]
        return
    for looked in (images.count, images.listing):
        with pytest.raises(UserError, match=f"val.txt give different classes to {refused}; remo"):
            looked()


def test_imagenet_without_any_list_says_what_is_missing(imagenet):
    with pytest.raises(UserError, match=r"none of LOC_val_solution.csv.*val.txt"):
        val_labels(imagenet)


def test_missing_files_are_named_with_their_source(tmp_path):
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train.tar .* image-net.org"):
        source(settings(name="imagenet", root=str(tmp_path), val_fraction=None)).count()


@pytest.mark.parametrize(
    ("fifo", "message"),
    [
        ("ILSVRC2012_devkit_t12.tar.gz", "is not a development kit, or is damaged"),
        ("ILSVRC2012_devkit_t12/data/meta.mat", "meta.mat cannot be read"),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "is not a file"),
        ("LOC_val_solution.csv", "is not a file"),
    ],
)
def test_a_fifo_in_place_of_a_list_is_refused_without_waiting(imagenet, fifo, message):
    path = imagenet / fifo
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n")
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with no_longer_than(60), pytest.raises(UserError, match=message):
        source(settings(name="imagenet", root=str(imagenet), val_fraction=None)).count()
