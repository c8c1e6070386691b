"""Sources: how folders are read, what is wrong with them in one line; CIFAR and ImageNet as distributed."""

import hashlib
import io
import os
import pickle
import socket
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from pipeline.data.sources.base import Item
from pipeline.data.sources.choose import source
from pipeline.errors import UserError
from tests.pipeline.data.preparing import encoded, folder, picture, settings


def listing(**changes):
    return source(settings(**changes)).listing()


def imagefolder(root, **changes):
    return listing(name="imagefolder", root=str(root), **changes)


@pytest.fixture
def root(tmp_path):
    return folder(tmp_path / "images", images=3)


def test_a_folder_per_class_as_torchvision_reads_it(root):
    (root / "dog" / "deeper").mkdir()
    (root / "dog" / "deeper" / "x.PNG").write_bytes(encoded(picture(1), "PNG"))
    (root / "dog" / "README.txt").write_text("no image")
    theirs = datasets.ImageFolder(root)
    (root / ".hidden").mkdir()
    found = imagefolder(root)
    assert list(found.classes) == theirs.classes
    assert [(str(root / name), label) for name, label in found.splits["all"]] == theirs.samples
    assert [row["name"] for row in found.passed] == [".hidden/", "dog/README.txt"]


def test_train_and_val_folders(tmp_path):
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


def test_what_cannot_be_trained_on_is_named(tmp_path, root):
    wrong(tmp_path / "nowhere", "nowhere is no folder", lambda: None)
    wrong(root, "train is no folder.*val_fraction", lambda: None, None)
    wrong(root, "empty has no images", (root / "empty").mkdir)
    (root / "empty").rename(root / "Cat")
    wrong(root, "'Cat' and 'cat' .* differ by case", lambda: None)
    one = tmp_path / "one"
    wrong(one, "1 class folders", lambda: folder(one, classes=("cat",)))
    both = tmp_path / "both"
    folder(both / "train")
    wrong(both, "class 'fox' is in", lambda: folder(both / "val", ("cat", "fox")), None)


def test_an_unreadable_folder_is_named(root, monkeypatch):
    """Root may read everything: a stand-in refuses."""
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


NO_FOLDERS = {
    "train and test": (("train/cat", "test/cat"), 0.2, "`ln -s test {}/val`, then launch with data.val_fraction=null"),
    "all three": (("train/cat", "val/cat", "test/cat"), 0.2, "splits and no classes; launch with data.val_fraction=null"),
    "other case": (("Train/cat", "Val/cat"), 0.2, "`ln -s Train {}/train && ln -s Val {}/val`"),
    "other case, as splits": (("Train/cat", "Val/cat"), None, "`ln -s Train {}/train && ln -s Val {}/val`"),
    "valid": (("train/cat", "valid/cat"), None, "{}/val is no folder; `ln -s valid {}/val`"),
    "valid before test": (("training/cat", "validation/cat", "test/cat"), None, "ln -s validation {}/val`"),
    "no val": (("train/cat",), None, "{}/val is no folder.*data.root={}/train data.val_fraction=0.1 splits"),
    "classes alone": (("cat", "dog"), None, "{}/train is no folder.*data.val_fraction=0.1 takes cat/, dog/ for"),
    "images between": (("images/train/cat", "images/val/cat"), None, "data.root={}/images"),
    "images between, to split": (("images/train/cat", "images/val/cat"), 0.2, "{}/images holds train/ and val/"),
    "with labels beside": (("images/train/a", "images/val/a", "labels/train/a", "labels/val/a"), 0.2, "{}/images holds train/ and val/"),
    "splits below classes": (("cat/train", "cat/test", "dog/train", "dog/test"), 0.2, "{}/cat holds test/ and train/"),
    "a level more": (("flowers/rose", "flowers/tulip"), 0.2, "1 class folders.*{}/flowers holds folders"),
    "one class": (("cat",), 0.2, "1 class folders; use at least 2"),
    "none": ((), 0.2, "0 class folders; use at least 2"),
    "an empty class": (("train/cat", "train/dog", "val/cat", "train/"), None, None),
    "only in val": (("train/cat", "train/dog", "val/fox"), None, "class 'fox' is in {}/val but not in {}/train"),
    "spelt otherwise in val": (("train/cat", "train/caf\u00e9", "val/cafe\u0301"), None, r"is spelt 'caf\\xe9' in"),
    "not UTF-8": (("cat", b"caf\xe9"), 0.2, r"class folder b'caf\\xe9' of {} is no UTF-8; rename it.*convmv"),
    "control character": (("cat", "do\ng"), 0.2, r"class folder 'do\\ng' of {} has a control character"),
    "two forms": (("caf\u00e9", "cafe\u0301"), 0.2, r"'cafe\\u0301' and 'caf\\xe9' of {} are one name in two forms of Unicode"),
    "a blank at the end": (("cat", "cat "), 0.2, "'cat' and 'cat ' of {} differ by case, spaces"),
    "a space of no width": (("cat", "cat\u200b"), 0.2, "characters that cannot be seen only"),
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
    for asked in (images.count, images.listing):  # at launch, and in prep
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


def test_what_is_passed_over_is_listed_with_its_reason(root):
    for name in PASSED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(5)))
    os.mkfifo(root / "dog" / "fifo.jpg")
    (root / "dog" / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "dog" / "socket.png"))
    (root / "cat" / "to_dog").symlink_to(root / "dog")
    found = imagefolder(root)
    assert [item.name for item in found.splits["all"]] == [
        f"{name}/00{n}.jpg" for name in ("cat", "dog") for n in range(3)
    ]
    told = {row["name"]: row["reason"] for row in found.passed}
    expected = dict(PASSED.values()) | {
        "dog/fifo.jpg": "a FIFO, no file", "dog/null.jpg": "a device, no file",
        "dog/socket.png": "a socket, no file", "cat/to_dog/": "the same folder as dog",
    }  # fmt: skip
    assert told.keys() == expected.keys()
    assert all(told[name].startswith(why) for name, why in expected.items())


def test_links_out_of_the_folder_are_images_like_others(root, tmp_path):
    away = folder(tmp_path / "away", ("fox",), images=2)
    (root / "fox").symlink_to(away / "fox")
    (root / "cat" / "x.jpg").symlink_to(away / "fox" / "000.jpg")
    found = imagefolder(root)
    assert found.classes == ("cat", "dog", "fox") and not found.passed
    assert len(found.splits["all"]) == 9


def test_what_became_a_fifo_is_not_waited_for(root):
    (root / "cat" / "000.jpg").unlink()
    os.mkfifo(root / "cat" / "000.jpg")
    with pytest.raises(OSError, match="no regular file"):
        source(settings(name="imagefolder", root=str(root))).read("cat/000.jpg")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Return a folder with an archive like that of CIFAR-10, and what is in it; a tiny stand-in."""
    random = np.random.default_rng(0)
    known, content, sums = datasets.CIFAR10, {}, {}
    for name, _ in [*known.train_list, *known.test_list]:
        batch = {
            "data": random.integers(0, 256, (4, 3072), dtype=np.uint8),
            "labels": random.integers(0, 10, 4).tolist(),
        }
        content[name] = pickle.dumps(batch)
    meta = known.meta["filename"]
    content[meta] = pickle.dumps({"label_names": [f"class {n}" for n in range(10)]})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(f"{known.base_folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            sums[name] = hashlib.md5(data).hexdigest()
    (tmp_path / known.filename).write_bytes(stream.getvalue())
    monkeypatch.setattr(known, "tgz_md5", hashlib.md5(stream.getvalue()).hexdigest())
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(known, part, [[n, sums[n]] for n, _ in getattr(known, part)])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": sums[meta]})
    return tmp_path, {name: pickle.loads(data) for name, data in content.items()}


@pytest.mark.parametrize("extracted", [False, True])
def test_cifar_gives_the_pixels_of_its_authors(cifar, extracted):
    root, content = cifar
    if extracted:
        with tarfile.open(root / datasets.CIFAR10.filename) as tar:
            tar.extractall(root, filter="data")
        (root / datasets.CIFAR10.filename).unlink()
    images = source(settings(name="cifar10", root=str(root), val_fraction=None))
    found = images.listing()
    assert found.classes == tuple(f"class {n}" for n in range(10))
    assert [len(found.splits[split]) for split in ("train", "val")] == [20, 4]
    second = content["data_batch_2"]
    item = found.splits["train"][5]
    assert item.label == second["labels"][1]
    pixels = np.asarray(Image.open(io.BytesIO(images.read(item.name))))
    assert np.array_equal(pixels, second["data"][1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_damaged_archive_is_named(cifar):
    root, _ = cifar
    archive = root / datasets.CIFAR10.filename
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz is damaged \(MD5 .* get it anew"):
        listing(name="cifar10", root=str(root), val_fraction=None)


class Hostile:
    """Makes a folder when it is un-pickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_batch_that_is_not_its_authors_is_not_unpickled(cifar, tmp_path):
    root, _ = cifar
    with tarfile.open(root / datasets.CIFAR10.filename) as tar:
        tar.extractall(root, filter="data")
    batch = root / datasets.CIFAR10.base_folder / "data_batch_1"
    batch.write_bytes(pickle.dumps(Hostile(tmp_path / "mark")))
    with pytest.raises(UserError, match=r"data_batch_1 is damaged \(MD5 .* get it anew"):
        listing(name="cifar10", root=str(root), val_fraction=None)
    assert not (tmp_path / "mark").exists()


def test_a_missing_archive_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"cifar-100-python.tar.gz .*https://.*data.root"):
        source(settings(name="cifar100", root=str(tmp_path), val_fraction=None)).count()


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


def test_imagenet_with_class_folders_in_val(imagenet):
    for number, wnid in enumerate((WNIDS[2], WNIDS[0], WNIDS[2]), start=1):
        (imagenet / "val" / wnid).mkdir(exist_ok=True)
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        (imagenet / "val" / name).rename(imagenet / "val" / wnid / name)
    assert val_labels(imagenet) == [0, 2, 2]


def test_imagenet_with_the_list_of_kaggle(imagenet):
    rows = [f"ILSVRC2012_val_{n:08d},{WNIDS[3 - n]} 1 2 3 4" for n in (3, 1, 2)]
    (imagenet / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    assert val_labels(imagenet) == [2, 1, 0]


@pytest.mark.parametrize("column", [WNIDS, ("0", "1", "2")])
def test_imagenet_with_a_list(imagenet, column):
    rows = [f"ILSVRC2012_val_{n:08d}.JPEG {column[n % 3]}" for n in (1, 2, 3)]
    (imagenet / "val.txt").write_text("\n".join(rows))
    assert val_labels(imagenet) == [1, 2, 0]


def test_imagenet_with_the_development_kit(imagenet):
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
    "huge": (rows("9" * 5000, 0, 1), "line 1: '999.*no whole number"),
    "float": (rows("2.0", 0, 1), "line 1: '2.0' is no folder of train/ and no whole number"),
    "unknown class": (rows(WNIDS[2], "n99999999", 0), "line 2: 'n99999999' is no folder of train/"),
    "twice": (ZERO + "\n" + rows(0), "line 4: ILSVRC2012_val_00000001 is there before, with another class"),
    "missing": (rows(1, 0), "tells no class of ILSVRC2012_val_00000003 in .*/val; add"),
    "other names": (rows(0, 1, 2, start=11), "tells no class of .* and 2 more images"),
    "one column": ("ILSVRC2012_val_00000001.JPEG\n", "line 1: 'ILSVRC2012_val_00000001.JPEG' is not a name and a class"),
    "three columns": ("0,ILSVRC2012_val_00000001.JPEG,2\n", "line 1: .* is not a name and a class"),
    "empty": ("", "names no image"), "only a header": ("ImageId,PredictionString\n", "names no image"),
    "UTF-16 without its mark": (ZERO.encode("utf-16-le"), "is no UTF-8 text; save it as UTF-8"),
    "bytes": (b"\xff\x00\x80 1", "is no UTF-8 text"), "folder": (None, "is no file"),
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
        ("3\n1\n7\n", "line 3: '7' is no class"),
        ("1\nx\n2", "line 2: 'x' is no class"),
        ("1\n2", "tells no class of"),
    ],
)
def test_a_development_kit_that_is_wrong_is_refused(imagenet, truth, words):
    from scipy.io import savemat

    data = imagenet / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    images = source(settings(name="imagenet", root=str(imagenet), val_fraction=None))
    with pytest.raises(UserError, match=r"ground_truth.txt is no file"):
        images.count()
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    with pytest.raises(
        UserError, match=r"meta.mat cannot be read .*extract the development kit anew"
    ):
        images.count()
    synsets = [(n, wnid) for n, wnid in enumerate(WNIDS, start=1)]
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O")]
    savemat(data / "meta.mat", {"synsets": np.array(synsets, dtype=kind)})
    with pytest.raises(UserError, match=words):
        images.count()


def test_imagenet_without_any_list_says_what_is_missing(imagenet):
    with pytest.raises(UserError, match=r"none of LOC_val_solution.csv.*val.txt"):
        val_labels(imagenet)


def test_no_imagenet_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train.tar .* image-net.org"):
        source(settings(name="imagenet", root=str(tmp_path), val_fraction=None)).count()


def test_synthetic_images_are_the_same_each_time_and_of_their_size():
    config = settings(name="synthetic", images=30, classes=3, height=40, width=60)
    images = source(config)
    found = images.listing()
    assert len(found.splits["all"]) == images.count() == 30
    data = images.read(found.splits["all"][4].name)
    assert data == source(config).read(found.splits["all"][4].name)
    assert Image.open(io.BytesIO(data)).size == (60, 40)
    assert len({images.read(item.name) for item in found.splits["all"]}) == 30
