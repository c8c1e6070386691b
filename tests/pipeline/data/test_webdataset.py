"""Test the source `webdataset`: samples, classes and splits of tar shards, and broken shards."""

import re
import tarfile

import pytest

from pipeline.data.sources import changes, webdataset
from pipeline.display.errors import UserError
from tests.pipeline.data.preparing import Prepared
from tests.pipeline.data.tarred import IMAGES, found, samples, shards, tar, write


def images_of(reader, listing):
    items = [item for split in listing.splits.values() for item in split]
    offsets = [(offset,) for offset in listing.offsets]
    return [reader.read(item.name, *offset) for item, offset in zip(items, offsets, strict=True)]


NAMED = [
    (None, None),
    ("x-train-{0000..0001}.tar", "x-val-{0000..0000}.tar"),
    ("x-train-*.tar", "x-val-0000.tar"),
    ("x-train-{0000,0001}.tar", "x-v*"),
]


@pytest.mark.parametrize(("train", "val"), NAMED)
def test_images_and_classes_are_those_of_the_shards(tmp_path, train, val):
    reader = found(shards(tmp_path), None, train, val)
    listing = reader.listing()
    assert reader.count() == 12
    assert listing.classes == ("0", "1")
    assert [item.label for item in listing.splits["train"]] == [0, 1] * 4
    assert listing.splits["val"][1].name == "x-val-0000.tar/0009.jpg"
    assert images_of(reader, listing) == IMAGES
    assert [file.name for file in listing.others] == [
        "x-train-0000.tar", "x-train-0001.tar", "x-val-0000.tar",
    ]  # fmt: skip


WRITTEN = {
    "names": (samples(0, 1, label="cat") | samples(2, 3, label=" dog\n"), ("cat", "dog")),
    "byte-order marks": (
        samples(0, 1, label="\ufeffcat") | samples(2, 3, label="dog"),
        ("cat", "dog"),
    ),
    "numbers in their order": (samples(0, 1, label=10) | samples(2, 3, label=9), ("9", "10")),
    "folders": (samples(0, 1, key="a.b/c/{}") | {"./d.json": b"{}"}, ("0", "1")),
    "upper case": (samples(0, 1, ending="JPEG"), ("0", "1")),
    "long names": (samples(0, 1, key="a" * 180 + "{}"), ("0", "1")),
    "other parts": (samples(0, 1) | {"0000.json": b"{}", "0001.seg.png": b"mask"}, ("0", "1")),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_samples_are_read_however_they_are_written(tmp_path, kind):
    members, classes = WRITTEN[kind]
    write(tmp_path / "a.tar", members)
    reader = found(tmp_path, 0.25)
    listing = reader.listing()
    assert listing.classes == classes
    assert images_of(reader, listing) == IMAGES[: len(listing.splits["all"])]


def test_ignored_members_and_files_are_listed(tmp_path):
    write(tmp_path / "a.tar", samples(0, 1) | {"README": b"", "._0000.jpg": b"", "9.cls": b"1"})
    write(tmp_path / "b.tar", samples(2, 3))
    (tmp_path / "c.tar.gz").write_bytes(b"")
    passed = {row["name"]: row["reason"] for row in found(tmp_path, 0.5, "a.tar").listing().passed}
    assert passed == {
        "a.tar/README": "no KEY.ENDING",
        "a.tar/._0000.jpg": "no KEY.ENDING",
        "a.tar/9": "no image among its parts: cls",
        "b.tar": "not among data.train and data.val",
        "c.tar.gz": "no .tar by its name",
    }


DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
ODD = [
    *((kind, "a link") for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE)),
    *((kind, "no regular file") for kind in DEVICES),
    (tarfile.DIRTYPE, None),
]


@pytest.mark.parametrize(("kind", "reason"), ODD)
def test_a_member_that_is_not_a_file_is_listed_and_not_followed(tmp_path, kind, reason):
    path = write(tmp_path / "a.tar", samples(0, 1, 2, 3))
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo("odd.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    listing = found(tmp_path, 0.5).listing()
    assert len(listing.splits["all"]) == 4
    assert listing.passed == ([{"name": "a.tar/odd.jpg", "reason": reason}] if reason else [])


def made(members, spoil=lambda data: data, name="a.tar"):
    """Return a function that writes one shard, with its bytes changed by `spoil`."""

    def make(root):
        path = write(root / name, members)
        path.write_bytes(spoil(path.read_bytes()))

    return make


def header_of(name):
    """Return a function that damages the tar header of the named member."""

    def spoil(data):
        offset = data.index(name.encode())
        return data[:offset] + b"\xff" + data[offset + 1 :]

    return spoil


def enormous():
    """Return the header of a tar member that claims a size of one petabyte."""
    info = tarfile.TarInfo("0002.jpg")
    info.size = 10**15
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


FOUR = samples(0, 1, 2, 3)
END = tar(FOUR).index(b"0003.cls") + 1024  # the end of the last member
WRONG = {
    "no folder": (lambda root: root.rmdir(), "is not a folder"),
    "nothing": (lambda root: None, "holds no .tar file; point data.root"),
    "compressed": (made({}, name="a.tar.gz"), "but a.tar.gz, which is compressed: `gunzip` it"),
    "no tar": (made(FOUR, lambda data: b"<html>" * 200), "a.tar is not a tar file, or is comp"),
    "empty": (made(FOUR, lambda data: b""), "a.tar is empty; get it again, or remove it"),
    "of an impossible size": (made({}, lambda data: enormous()), "after its member .0002.jpg.: it"),
    "of an impossible size later": (
        made(FOUR, lambda data: data[: data.index(b"0002.jpg")] + enormous()),
        "broken in or after its member '0002.jpg'",
    ),
    "broken first": (made(FOUR, header_of("0000.jpg")), "a.tar is not a tar file"),
    "broken": (
        made(FOUR, header_of("0002.jpg")),
        "a.tar is broken in or after its member '0001.cls'",
    ),
    "cut in an image": (
        made(FOUR, lambda data: data[: data.index(b"0002.jpg") + 700]),
        "broken in or after its member '0002.jpg'",
    ),
    "cut between": (
        made(FOUR, lambda data: data[: data.index(b"0002.jpg")]),
        "broken in or after its member '0001.cls'",
    ),
    "cut at the end": (made(FOUR, lambda data: data[:END]), "in or after its member '0003.cls'"),
    "a hole of zeros, or two in one": (
        made(FOUR, lambda data: data + data),
        "a.tar goes on after its end, behind member '0003.cls'",
    ),
    "no class": (
        made(samples(0) | {"7.jpg": b"", "7.json": b""}),
        "of '7' there is jpg, json, no cls",
    ),
    "two images": (made(samples(0, 1) | {"0000.png": b""}), "two images of '0000'"),
    "no UTF-8": (
        made(samples(0, 1) | {"7.jpg": b"", "7.cls": b"\xe9"}),
        "'7.cls' is not UTF-8 text",
    ),
    "an empty class": (made(samples(0, 1) | {"7.jpg": b"", "7.cls": b""}), "has the label ''"),
    "an unknown class": (
        made(samples(0, 1, 2, label=-1)),
        "has the label -1, so its class is unknown",
    ),
    "names and numbers": (
        made(samples(0) | samples(1, label="x")),
        r"names \('x'\) and numbers \(0",
    ),
    "no image": (
        made({"0.npy": b"", "0.cls": b"1"}),
        "has no images: 'a.tar/0' has no image among its parts: npy, cls; write",
    ),
    "endings of two parts": (
        made({"0.input.png": IMAGES[0], "0.target.cls": b"1"}),
        "has no image among its parts: input.png, target.cls; write them as KEY.jpg",
    ),
    "nothing in it": (made({}), "has no images; add some"),
    "one class": (made(samples(0, 2)), "images of one class only, 0"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_shard_is_refused_in_one_line(tmp_path, kind):
    make, words = WRONG[kind]
    make(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        found(tmp_path, 0.25).listing()
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


PATTERNS = [
    (
        {"train": "x-train-{0000..0002}.tar", "val": "x-val*"},
        "x-train-0002.tar is not there; data.tr",
    ),
    ({"train": "x-train-*", "val": "x-test*"}, "not there; data.val=x-test"),
    ({"train": "x-*", "val": "x-val*"}, "x-val-0000.tar is in data.train and in data.val"),
    ({"train": "x-*"}, "set data.train, and one of the two others"),
    ({"val": "x-*"}, "set data.train, and one of the two others"),
    ({"train": "x-*", "val": "x-val*", "val_fraction": 0.1}, "set data.train, and one of the two"),
    ({"val_fraction": 0.1}, "launch with data.val_fraction=null"),
    ({"train": "x-{0..999999999}.tar", "val": "x-val*"}, "{0..999999999} names 1,000,000,000 shar"),
    ({"train": "x-{5..2}.tar", "val": "x-val*"}, "{5..2} names 0 shards; count up"),
    ({"train": "{0..9999}-{0..9999}", "val": "x-val*"}, "names 100,000,000 shards; name at most"),
]


@pytest.mark.parametrize(("asked", "words"), PATTERNS, ids=str)
def test_patterns_that_do_not_fit_are_refused_at_launch(tmp_path, asked, words):
    reader = found(shards(tmp_path), **asked)
    with pytest.raises(UserError, match=re.escape(words)):
        reader.count()


def test_a_validation_class_without_training_images_is_refused(tmp_path):
    shards(tmp_path)
    write(tmp_path / "x-val-0001.tar", samples(3, label=7))
    with pytest.raises(
        UserError, match=r"0001.tar/0003.jpg has the label 7 in val, of which there"
    ):
        found(tmp_path).listing()


def test_shards_without_images_are_refused_at_launch(tmp_path):
    write(tmp_path / "a.tar", {"0.input.png": IMAGES[0], "0.target.cls": b"1"})
    with pytest.raises(UserError, match=r"has no images: 'a.tar/0' has no image among its parts"):
        found(tmp_path, 0.25).count()


def test_many_shards_are_counted_by_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "PATIENCE", -1)
    counted = found(shards(tmp_path)).count()
    assert 10 <= counted <= 14


def test_prep_checks_members_as_it_checks_files(tmp_path):
    root = shards(tmp_path / "set")
    copy = {"0000.jpg": IMAGES[8], "0000.cls": b"0", "0001.jpg": IMAGES[1][:200], "0001.cls": b"1"}
    write(root / "x-train-0002.tar", copy)
    prep = Prepared(
        tmp_path, 4, name="webdataset", root=str(root), val_fraction=None, train=None, val=None,
        max_bad=0.5,
    ).run()  # fmt: skip
    assert set(prep.quarantine()) == {"x-train-0002.tar/0000.jpg", "x-train-0002.tar/0001.jpg"}
    stored = prep.stored("train")
    assert {number: data for number, (data, *_) in stored.items()} == dict(enumerate(IMAGES[:8]))
    assert list(stored) != list(range(8))
    assert str(changes.compare(root, prep.folder / changes.FILE, 10)) == ""
    write(root / "x-train-0003.tar", samples(0))
    (root / "x-val-0000.tar").unlink()
    assert str(changes.compare(root, prep.folder / changes.FILE, 10)) == "1 added, 1 removed"


def test_a_shard_that_changes_while_it_is_read_gives_bad_images(tmp_path):
    reader = found(shards(tmp_path))
    listing = reader.listing()
    item, offset = listing.splits["train"][2], listing.offsets[2]
    shard = tmp_path / "x-train-0000.tar"
    shard.write_bytes(shard.read_bytes()[: offset + 10])
    with pytest.raises(OSError, match="its tar file was cut off"):
        reader.read(item.name, offset)
    shard.write_bytes(b"x" * 9000)
    with pytest.raises(OSError, match="is not where it was"):
        reader.read(item.name, offset)
