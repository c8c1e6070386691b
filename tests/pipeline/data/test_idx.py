"""Test the sources in the idx format of MNIST: images, labels, class names, and damaged files."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from pipeline.config import rules
from pipeline.data.sources.choose import source
from pipeline.display.errors import UserError
from tests.pipeline.data.preparing import Prepared, settings

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
MNIST, LETTERS = ("train", "t10k"), ("emnist-letters-train", "emnist-letters-test")


def idx(array):
    sizes = b"".join(size.to_bytes(4) for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def files(folder, prefixes=MNIST, end="", spelt="-idx", labels=(4, 1, 3, 9, 1, 2)):
    """Write four training and two validation images with labels; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.array(labels, dtype=np.uint8)
    for prefix, part in zip(prefixes, (slice(4), slice(4, 6)), strict=True):
        for name, array in ((f"images{spelt}3", PIXELS[part]), (f"labels{spelt}1", labels[part])):
            data = idx(array)
            path = folder / f"{prefix}-{name}-ubyte{end}"
            path.write_bytes(gzip.compress(data) if end else data)
    return folder


def found(root, name="mnist", **changes):
    return source(settings(name=name, root=str(root), val_fraction=None, **changes))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(("below", "spelt"), [("", "-idx"), ("KMNIST/raw", "-idx"), ("", ".idx")])
def test_images_and_labels_are_those_of_the_files(tmp_path, end, below, spelt):
    files(tmp_path / below, end=end, spelt=spelt)
    images = found(tmp_path, "kmnist")
    listing = images.listing()
    assert images.count() == 6
    assert listing.classes == tuple(datasets.KMNIST.classes)
    assert [item.label for item in listing.splits["train"]] == [4, 1, 3, 9]
    assert [item.label for item in listing.splits["val"]] == [1, 2]
    assert np.array_equal(pixels(images.read(listing.splits["val"][1].name)), PIXELS[5])
    assert len(listing.others) == 4 and all(file.size for file in listing.others)


def test_a_compressed_file_is_unpacked_once_for_all_processes(tmp_path):
    files(tmp_path / "data", end=".gz")
    asked = settings(name="mnist", root=str(tmp_path / "data"), val_fraction=None)
    names = [item.name for item in source(asked, tmp_path / "s").listing().splits["train"]]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "t10k-images-idx3-ubyte",
        "train-images-idx3-ubyte",
    ]
    packed = tmp_path / "data" / "train-images-idx3-ubyte.gz"
    # a second reader needs only the header of this file
    packed.write_bytes(gzip.compress(idx(PIXELS[:4])[:16]))
    other = source(asked, tmp_path / "s")
    assert np.array_equal(pixels(other.read(names[3])), PIXELS[3])


def test_prep_leaves_no_unpacked_file(tmp_path):
    files(tmp_path / "data", end=".gz")
    made = Prepared(tmp_path / "o", name="mnist", root=str(tmp_path / "data"), val_fraction=None)
    made.run()
    assert not list((tmp_path / "o").rglob("*ubyte"))
    assert len(made.stored("train")) == 4


def test_classes_have_the_names_of_torchvision(tmp_path):
    files(tmp_path)
    fashion = found(tmp_path, "fashion_mnist").listing()
    assert fashion.classes == tuple(datasets.FashionMNIST.classes)
    for split, theirs in datasets.EMNIST.classes_split_dict.items():
        data = settings(name="emnist", root="/x", val_fraction=None, split=split)
        assert source(data).classes == tuple(name for name in theirs if name != "N/A")
        assert data.classes == len(source(data).classes)


def test_the_images_of_emnist_are_turned_upright_and_its_letters_count_from_one(tmp_path):
    files(tmp_path, LETTERS, ".gz", labels=(1, 2, 26, 1, 1, 3))
    images = found(tmp_path, "emnist", split="letters")
    listing = images.listing()
    assert [listing.classes[item.label] for item in listing.splits["train"]] == list("abza")
    assert np.array_equal(pixels(images.read(listing.splits["train"][1].name)), PIXELS[1].T)


def cut(path, size=-1):
    path.write_bytes(path.read_bytes()[:size])


def unpacked(root, name):
    """Replace a compressed file by its uncompressed content; return the new path."""
    packed = root / f"{name}.gz"
    (root / name).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return root / name


def no_images(root):
    for name, array in ((TRAIN, PIXELS[:0]), (LABELS, PIXELS[:0, 0, 0])):
        (root / f"{name}.gz").write_bytes(gzip.compress(idx(array)))


TRAIN, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
WRONG = {
    "cut off": (lambda root: cut(unpacked(root, TRAIN)), "images-idx3-ubyte was cut off: it has"),
    "head cut off": (lambda root: cut(unpacked(root, TRAIN), 9), "it has 9 bytes, not 16"),
    "archive cut off": (lambda root: cut(root / f"{TRAIN}.gz"), "was cut off or is damaged"),
    "no archive": (lambda root: (root / f"{TRAIN}.gz").write_bytes(b"<html>"), "cut off or is dam"),
    "no idx": (
        lambda root: (root / f"{TRAIN}.gz").write_bytes(gzip.compress(b"<html>")),
        "not an idx",
    ),
    "longer": (lambda root: unpacked(root, TRAIN).open("ab").write(b"x"), "longer than it says"),
    "missing": (lambda root: (root / f"{LABELS}.gz").unlink(), f"holds no {LABELS} or"),
    "of another": (
        lambda root: (root / f"{LABELS}.gz").write_bytes(gzip.compress(idx(PIXELS[0, 0]))),
        "has 28 labels, .*gz has 4 images: they do not belong together",
    ),
    "no images": (no_images, "has no images; get it again"),
    "swapped": (
        lambda root: (root / f"{LABELS}.gz").write_bytes((root / f"{TRAIN}.gz").read_bytes()),
        f"is no {LABELS}: it has 3 dimensions",
    ),
    "no class": (lambda root: files(root, end=".gz", labels=[10] * 6), "go from 0 to 9"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_are_wrong_are_named_in_one_line(tmp_path, kind):
    spoil, words = WRONG[kind]
    spoil(files(tmp_path, end=".gz"))
    for looked in (
        found(tmp_path).count,
        found(tmp_path).listing,
    ):  # count() is called by a launch, listing() by prep
        with pytest.raises(UserError, match=words) as error:
            looked()
        assert "\n" not in str(error.value)


def test_classes_without_images_are_reported(tmp_path, capsys):
    root = files(tmp_path / "mnist", labels=(4, 1, 3, 4, 1, 2))
    made = Prepared(tmp_path, name="mnist", root=str(root), val_fraction=None, max_bad=0.0).run()
    assert made.remarks()["4"] == "has no validation image"
    assert made.remarks()["2"] == "has no training image"
    assert "1" not in made.remarks()
    assert "15 times a class has no image, e.g. '0': has no training image" in (
        capsys.readouterr().out
    )


def test_an_archive_of_several_gzip_members_is_read_whole(tmp_path):
    packed = files(tmp_path, end=".gz") / f"{TRAIN}.gz"
    whole = idx(PIXELS[:4])
    packed.write_bytes(gzip.compress(whole[:1000]) + gzip.compress(whole[1000:]))
    assert found(tmp_path).count() == 6


def test_prep_reads_changed_files_again(tmp_path):
    root = files(tmp_path / "mnist", end=".gz")
    prepared = Prepared(tmp_path, name="mnist", root=str(root), val_fraction=None, max_bad=0.0)
    assert prepared.run().metrics["train_images"] == 4
    assert prepared.manifest.size == (28, 28)
    files(root, labels=(4, 1, 3, 8, 1, 2))  # uncompressed files come before compressed ones
    assert 8 in {label for _, _, label in prepared.run().stored("train").values()}


@pytest.mark.parametrize(
    ("data", "there", "root"),
    [
        ({"name": "fashion_mnist", "root": None}, True, "HERE"),
        ({"name": "fashion_mnist", "root": None}, False, None),
        ({"name": "fashion_mnist", "root": "/mine"}, True, "/mine"),
        ({"name": "mnist", "root": None}, True, None),
    ],
)
def test_the_debian_package_of_fashion_mnist_is_the_default_root(
    tmp_path, monkeypatch, data, there, root
):
    where = tmp_path if there else tmp_path / "not"
    monkeypatch.setitem(rules.PACKAGED, "fashion_mnist", str(where))
    found = rules.settle({"data": data})["data"]["root"]
    assert found == (str(where) if root == "HERE" else root)
