"""Sources: how folders are read, what is wrong with them in one line; CIFAR and ImageNet as distributed."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from pipeline.data.sources import Item, folders, source
from pipeline.errors import UserError
from tests.pipeline.preparing import encoded, folder, picture, settings


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
    assert found.ignored == 1


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

    monkeypatch.setattr(folders.os, "scandir", refuses)
    with pytest.raises(UserError, match="dog: Permission denied; make it readable"):
        imagefolder(root)


def test_links_that_lead_in_circles_are_followed_once(root):
    (root / "dog" / "loop").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    names = [item.name for item in imagefolder(root).splits["all"]]
    assert names == [f"{name}/00{n}.jpg" for name in ("cat", "dog") for n in range(3)]


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
