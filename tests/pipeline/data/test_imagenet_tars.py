"""Test the source `imagenet` on its original tar files, which are read without unpacking."""

import io
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.sources.choose import source
from pipeline.data.sources.imagenet_tars import TRAIN, VAL
from pipeline.display.errors import UserError
from tests.pipeline.data.preparing import Prepared, encoded, picture, settings
from tests.pipeline.data.test_webdataset import tar

WNIDS = ("n01440764", "n01443537", "n02084071")
IMAGES = [encoded(picture(n)) for n in range(9)]
OF_CLASS = {
    wnid: {f"{wnid}_{n}.JPEG": IMAGES[2 * label + n] for n in range(2)}
    for label, wnid in enumerate(WNIDS)
}
HELD = {f"ILSVRC2012_val_{n:08d}.JPEG": IMAGES[5 + n] for n in (1, 2, 3)}
SAID = "\n".join(f"{name} {wnid}" for name, wnid in zip(HELD, reversed(WNIDS), strict=True))


@pytest.fixture
def root(tmp_path):
    """Return a folder with both tar files and a list of the validation classes."""
    inner = {f"{wnid}.tar": tar(OF_CLASS[wnid]) for wnid in reversed(WNIDS)}
    (tmp_path / TRAIN).write_bytes(tar(inner))
    (tmp_path / VAL).write_bytes(tar(HELD))
    (tmp_path / "val.txt").write_text(SAID)
    return tmp_path


def found(root):
    return source(settings(name="imagenet", root=str(root), val_fraction=None))


def test_the_images_are_those_in_the_tar_files(root):
    reader = found(root)
    listing = reader.listing()
    assert reader.count() == 1_331_167
    assert listing.classes == WNIDS
    train, val = listing.splits["train"], listing.splits["val"]
    assert [item.label for item in train] == [0, 0, 1, 1, 2, 2]
    assert [item.label for item in val] == [2, 1, 0]
    assert train[2].name == f"{TRAIN}/n01443537/n01443537_0.JPEG"
    read = [reader.read(i.name, at) for i, at in zip(train + val, listing.offsets, strict=True)]
    assert read == IMAGES
    assert [file.name for file in listing.others] == [TRAIN, VAL, "val.txt"]


def packed_kit(path, truth=b"3\n2\n1\n"):
    own = [(n, wnid, "", "", 0) for n, wnid in enumerate(WNIDS, start=1)]
    kind = [
        ("ILSVRC2012_ID", "i4"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("children", "i4"),
    ]
    stream = io.BytesIO()
    savemat(stream, {"synsets": np.array(own, dtype=kind)})
    files = {"ILSVRC2012_validation_ground_truth.txt": truth, "meta.mat": stream.getvalue()}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_the_development_kit_need_not_be_extracted(root):
    (root / "val.txt").unlink()
    packed_kit(root / "ILSVRC2012_devkit_t12.tar.gz")
    assert [item.label for item in found(root).listing().splits["val"]] == [2, 1, 0]


def test_folders_beside_the_tar_files_are_read_as_before(root):
    for split in ("train", "val"):
        for wnid in WNIDS:
            (root / split / wnid).mkdir(parents=True)
            (root / split / wnid / "a.JPEG").write_bytes(IMAGES[0])
    assert found(root).listing().splits["train"][0].name == "train/n01440764/a.JPEG"


def inner(root, data):
    (root / TRAIN).write_bytes(
        tar({"n01440764.tar": data, "n01443537.tar": tar(OF_CLASS[WNIDS[1]])})
    )


def kit(root, **changes):
    (root / "val.txt").unlink()
    packed_kit(root / "ILSVRC2012_devkit_t12.tar.gz", **changes)


WHOLE = tar(OF_CLASS[WNIDS[0]])
SECOND = WHOLE.index(b"n01440764_1.JPEG")
WRONG = {
    "no validation": (
        lambda root: (root / VAL).unlink(),
        f"{VAL} is missing beside its other half",
    ),
    "no list": (lambda root: (root / "val.txt").unlink(), "to name their classes"),
    "a short list": (
        lambda root: (root / "val.txt").write_text(SAID.partition("\n")[0]),
        f"names no class for ILSVRC2012_val_00000002 and 1 more images in .*{VAL}",
    ),
    "a wrong list": (
        lambda root: (root / "val.txt").write_text(SAID.replace(WNIDS[0], "n00000000")),
        "'n00000000' is neither a folder of train/",
    ),
    "a kit of another": (
        lambda root: kit(root, truth=b"7\n"),
        "not a development kit, or is damaged",
    ),
    "cut off": (
        lambda root: (root / TRAIN).write_bytes((root / TRAIN).read_bytes()[:30_000]),
        f"{TRAIN} is broken in or after its member 'n0",
    ),
    "a broken class": (lambda root: inner(root, b"<html>" * 99), "n01440764.tar is not a tar file"),
    "a class cut off": (
        lambda root: inner(root, WHOLE[:SECOND] + b"\xff" * 512),
        "n01440764.tar is broken in or after its member 'n01440764_0.JPEG'",
    ),
    "a class without end": (lambda root: inner(root, WHOLE[:SECOND]), "n01440764.tar"),
    "an empty class": (lambda root: inner(root, tar({})), "n01440764.tar"),
    "no class": (
        lambda root: (root / TRAIN).write_bytes(tar({"a.txt": b""})),
        "0 tar files of class",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_set_of_tar_files_is_refused_in_one_line(root, kind):
    spoil, words = WRONG[kind]
    spoil(root)
    with pytest.raises(UserError, match=words) as error:
        found(root).listing()
    assert "\n" not in str(error.value)


def test_prep_stores_images_of_the_tar_files_in_random_order(root):
    prep = Prepared(root / "out", 4, name="imagenet", root=str(root), val_fraction=None).run()
    stored = prep.stored("train")
    assert {number: data for number, (data, *_) in stored.items()} == dict(enumerate(IMAGES[:6]))
    assert list(stored) != list(range(6))
