"""Test the source `imagefolder`: which files are images, and which layouts are refused in one line."""

import io
import os
import socket

import pytest
from PIL import Image
from torchvision import datasets

from pipeline.data.sources import names
from pipeline.data.sources.base import Item
from pipeline.data.sources.choose import source
from pipeline.display.errors import UserError
from tests.pipeline.data.preparing import encoded, folder, listing, picture, prepared, settings


def imagefolder(root, **changes):
    return listing(name="imagefolder", root=str(root), **changes)


@pytest.fixture
def root(tmp_path):
    return folder(tmp_path / "images", images=3)


def test_a_folder_per_class_is_read_as_by_torchvision(root):
    (root / "dog" / "deeper").mkdir()
    (root / "dog" / "deeper" / "x.PNG").write_bytes(encoded(picture(1), "PNG"))
    (root / "dog" / "README.txt").write_text("no image")
    theirs = datasets.ImageFolder(root)
    (root / ".hidden").mkdir()
    found = imagefolder(root)
    assert list(found.classes) == theirs.classes
    assert [(str(root / name), label) for name, label in found.splits["all"]] == theirs.samples
    assert [row["name"] for row in found.passed] == [".hidden/", "dog/README.txt"]


def test_train_and_val_folders_are_the_splits(tmp_path):
    folder(tmp_path / "train", images=2)
    folder(tmp_path / "val", images=1)
    found = imagefolder(tmp_path, val_fraction=None)
    assert [len(found.splits[split]) for split in ("train", "val")] == [4, 2]
    assert found.splits["val"] == [Item("val/cat/000.jpg", 0), Item("val/dog/000.jpg", 1)]


def wrong(path, words, make, val_fraction=0.25):
    make()
    with pytest.raises(UserError, match=words) as error:
        imagefolder(path, val_fraction=val_fraction)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_trained_on_is_refused_with_its_name(tmp_path, root):
    wrong(tmp_path / "nowhere", "nowhere is not a folder", lambda: None)
    wrong(root, "train is not a folder.*val_fraction", lambda: None, None)
    wrong(root, "empty has no images", (root / "empty").mkdir)
    (root / "empty").rename(root / "Cat")
    wrong(root, "'Cat' and 'cat' .* differ only in case", lambda: None)
    one = tmp_path / "one"
    wrong(one, "1 class folder;", lambda: folder(one, classes=("cat",)))
    flat = tmp_path / "flat"
    folder(flat / "train")
    (flat / "val").mkdir()
    (flat / "val" / "a.jpg").write_bytes(b"")
    wrong(flat, "val has no images in class folders, but 1 that are in none", lambda: None, None)
    both = tmp_path / "both"
    folder(both / "train")
    wrong(both, "class 'fox' is in", lambda: folder(both / "val", ("cat", "fox")), None)


def test_an_unreadable_folder_is_named(root, monkeypatch):
    """A stand-in for `os.scandir` refuses the folder, because root may read any folder."""
    real = os.scandir

    def refuses(path="."):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(UserError, match="dog: Permission denied; make it readable"):
        imagefolder(root)


def test_links_that_lead_in_circles_are_followed_once(root):
    (root / "dog" / "loop").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    found = imagefolder(root)
    names = [item.name for item in found.splits["all"]]
    assert {row["name"] for row in found.passed} == {"dog/loop/", "dog/up/"}
    assert names == [f"{name}/00{n}.jpg" for name in ("cat", "dog") for n in range(3)]


@pytest.mark.parametrize(
    ("counts", "fraction", "message"),
    [
        (
            (2, 1),
            0.5,
            "class 'dog' has one image, and data.val_fraction=0.5 needs two of each class",
        ),
        ((4, 4), 0.1, "of each of the 2 classes on one side, of 8 images; use from 0.25 to 0.75"),
    ],
)
def test_images_that_cannot_be_split_are_refused_with_the_cure(tmp_path, counts, fraction, message):
    for name, count in zip(("cat", "dog"), counts, strict=True):
        folder(tmp_path / "images", classes=(name,), images=count)
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, tmp_path / "images", val_fraction=fraction).run()


NO_FOLDERS = {
    "train and test": (("train/cat", "test/cat"), 0.2, "`ln -s test {}/val`, then launch with data.val_fraction=null"),
    "all three": (("train/cat", "val/cat", "test/cat"), 0.2, "splits and no classes; launch with data.val_fraction=null"),
    "other case": (("Train/cat", "Val/cat"), 0.2, "`ln -s Train {}/train && ln -s Val {}/val`"),
    "other case, as splits": (("Train/cat", "Val/cat"), None, "`ln -s Train {}/train && ln -s Val {}/val`"),
    "valid": (("train/cat", "valid/cat"), None, "{}/val is not a folder; `ln -s valid {}/val`"),
    "valid before test": (("training/cat", "validation/cat", "test/cat"), None, "ln -s validation {}/val`"),
    "no val": (("train/cat",), None, "{}/val is not a folder.*data.root={}/train data.val_fraction=0.1 splits"),
    "classes alone": (("cat", "dog"), None, "{}/train is not a folder.*data.val_fraction=0.1 takes cat/, dog/ for"),
    "images between": (("images/train/cat", "images/val/cat"), None, "data.root={}/images"),
    "images between, to split": (("images/train/cat", "images/val/cat"), 0.2, "{}/images holds train/ and val/"),
    "with labels beside": (("images/train/a", "images/val/a", "labels/train/a", "labels/val/a"), 0.2, "{}/images holds train/ and val/"),
    "splits below classes": (("cat/train", "cat/test", "dog/train", "dog/test"), 0.2, "{}/cat holds test/ and train/"),
    "splits below train": (("train/train/a", "train/test/a", "val/train/a", "val/test/a"), None, "{}/train holds test/ and train/, which are splits .* data.root={}/train is where they are; `ln -s test {}/train/val`"),
    "a level more": (("flowers/rose", "flowers/tulip"), 0.2, "1 class folder;.*{}/flowers holds folders"),
    "one class": (("cat",), 0.2, "1 class folder; use at least 2"),
    "none": ((), 0.2, "0 class folders; use at least 2"),
    "an empty class": (("train/cat", "train/dog", "val/cat", "train/"), None, None),
    "only in val": (("train/cat", "train/dog", "val/fox"), None, "class 'fox' is in {}/val but not in {}/train"),
    "spelt otherwise in val": (("train/cat", "train/caf\u00e9", "val/cafe\u0301"), None, r"is spelt 'caf\\xe9' in"),
    "not UTF-8": (("cat", b"caf\xe9"), 0.2, r"class folder b'caf\\xe9' of {} is not UTF-8; rename it.*convmv"),
    "control character": (("cat", "do\ng"), 0.2, r"class folder 'do\\ng' of {} has a control character"),
    "two forms": (("caf\u00e9", "cafe\u0301"), 0.2, r"'cafe\\u0301' and 'caf\\xe9' of {} are one name in two forms of Unicode"),
    "a blank at the end": (("cat", "cat "), 0.2, "'cat' and 'cat ' of {} differ only in case, spaces"),
    "a space of no width": (("cat", "cat\u200b"), 0.2, "or invisible characters; merge"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_FOLDERS)
def test_a_folder_of_another_layout_is_refused_with_the_cure(tmp_path, kind):
    made, val_fraction, words = NO_FOLDERS[kind]
    for name in made:
        path = os.fsencode(tmp_path) + b"/" + os.fsencode(name)
        os.makedirs(path, exist_ok=True)  # noqa: PTH103 (bytes)
        with open(path + b"/x.png", "wb") as file:  # noqa: PTH123
            file.write(encoded(picture(1), "PNG"))
    images = source(settings(name="imagefolder", root=str(tmp_path), val_fraction=val_fraction))
    if words is None:
        assert images.count() == 3
        return
    for asked in (images.count, images.listing):  # count() is called by a launch, listing() by prep
        with pytest.raises(UserError, match=words.replace("{}", str(tmp_path))) as error:
            asked()
        assert "\n" not in str(error.value)


def test_a_class_may_be_called_like_a_split(tmp_path):
    folder(tmp_path, ("car", "train", "plane"), images=1)
    assert imagefolder(tmp_path).classes == ("car", "plane", "train")


PASSED = {
    "@eaDir/000.jpg/SYNOPHOTO_THUMB_M.jpg": ("@eaDir/", "made by the system"),
    "cat/@eaDir/000.jpg/SYNOPHOTO_THUMB_M.jpg": ("cat/@eaDir/", "made by the system"),
    "__MACOSX/cat/._000.jpg": ("__MACOSX/", "made by the system"),
    "lost+found/x.jpg": ("lost+found/", "made by the system"),
    ".ipynb_checkpoints/000-checkpoint.jpg": (".ipynb_checkpoints/", "hidden"),
    "cat/._000.jpg": ("cat/._000.jpg", "hidden"),
    "cat/.nfs000000.jpg": ("cat/.nfs000000.jpg", "hidden"),
    "cat/.DS_Store": ("cat/.DS_Store", "hidden"),
    "cat/Thumbs.db": ("cat/Thumbs.db", "no image by its name"),
    "dog/desktop.ini": ("dog/desktop.ini", "no image by its name"),
    "dog/x.jpg.part": ("dog/x.jpg.part", "no image by its name"),
    "dog/x.jpg.crdownload": ("dog/x.jpg.crdownload", "no image by its name"),
    "loose.jpg": ("loose.jpg", "in no class folder"),
}


def test_ignored_files_are_listed_with_the_reason(root):
    for name in PASSED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(5)))
    os.mkfifo(root / "dog" / "fifo.jpg")
    (root / "dog" / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(root / "dog" / "socket.png"))
    (root / "cat" / "to_dog").symlink_to(root / "dog")
    found = imagefolder(root)
    assert [item.name for item in found.splits["all"]] == [
        f"{name}/00{n}.jpg" for name in ("cat", "dog") for n in range(3)
    ]
    reasons = {row["name"]: row["reason"] for row in found.passed}
    expected = dict(PASSED.values()) | {
        "dog/fifo.jpg": "a FIFO, no file", "dog/null.jpg": "a device, no file",
        "dog/socket.png": "a socket, no file", "cat/to_dog/": "the same folder as dog",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(why) for name, why in expected.items())


def test_links_out_of_the_folder_are_images_like_others(root, tmp_path):
    away = folder(tmp_path / "away", ("fox",), images=2)
    (root / "fox").symlink_to(away / "fox")
    (root / "cat" / "x.jpg").symlink_to(away / "fox" / "000.jpg")
    found = imagefolder(root)
    assert found.classes == ("cat", "dog", "fox") and not found.passed
    assert len(found.splits["all"]) == 9


def test_an_image_replaced_by_a_fifo_is_not_waited_for(root):
    (root / "cat" / "000.jpg").unlink()
    os.mkfifo(root / "cat" / "000.jpg")
    with pytest.raises(OSError, match="no regular file"):
        source(settings(name="imagefolder", root=str(root))).read("cat/000.jpg")


def test_a_file_too_large_for_an_image_is_not_read(root):
    os.truncate(root / "cat" / "000.jpg", 2**40)  # a sparse file
    with pytest.raises(OSError, match="1,099,511,627,776 bytes are too many for one image"):
        source(settings(name="imagefolder", root=str(root))).read("cat/000.jpg")


def test_a_utf8_name_that_python_cannot_decode_is_not_called_invalid(tmp_path):
    """With LC_ALL=C and PYTHONUTF8=0, Python decodes file names as ASCII."""
    with pytest.raises(UserError, match=r"is UTF-8, which Python does not read here; unset"):
        names.check({"caf\udcc3\udca9"}, tmp_path)
    with pytest.raises(UserError, match=r"is not UTF-8; rename it"):
        names.check({"caf\udce9"}, tmp_path)


def test_synthetic_images_are_the_same_each_time_and_of_their_size():
    config = settings(name="synthetic", images=30, classes=3, height=40, width=60)
    images = source(config)
    found = images.listing()
    assert len(found.splits["all"]) == images.count() == 30
    data = images.read(found.splits["all"][4].name)
    assert data == source(config).read(found.splits["all"][4].name)
    assert Image.open(io.BytesIO(data)).size == (60, 40)
    assert len({images.read(item.name) for item in found.splits["all"]}) == 30
