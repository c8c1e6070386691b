"""Test `planning.freshness`: a note says that images changed since prep, or that it is unknown."""

import gzip
import os
from array import array

import pytest

from pipeline.data.sources import changes
from pipeline.data.sources.base import Item, Listing
from pipeline.data.sources.choose import source
from pipeline.data.sources.tree import tree
from pipeline.planning import freshness
from tests.pipeline.data.preparing import settings


def instead(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


def rewritten(change):
    return lambda path: path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "empty": lambda path: path.write_bytes(b""),
    "no gzip": lambda path: path.write_bytes(b"null\n"),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-5] + b"\x00\xff\x00\xff\x00"),
    "no line": rewritten(lambda _: b""),
    "null": rewritten(lambda _: b"null\n"),
    "another file": rewritten(lambda _: b"{}\n"),
    "zeros of a power cut": rewritten(lambda content: content + bytes(90)),
    "half a row": rewritten(lambda content: content[:-20]),
    "FIFO": instead(os.mkfifo),
    "folder": instead(os.mkdir),
    "device": instead(lambda path: path.symlink_to("/dev/zero")),
    "loop": instead(lambda path: path.symlink_to(path.name)),
}


@pytest.fixture
def listed(tmp_path):
    """Return a folder of images, and a folder with the saved list of these images."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "a.jpg").touch()
    kept = tmp_path / "kept"
    kept.mkdir()
    found = source(settings(name="imagefolder", root=str(tmp_path / "images"))).listing()
    changes.save(found, kept / changes.FILE)
    return tmp_path / "images", kept


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_of_images_is_a_note(listed, damage):
    root, kept = listed
    assert freshness._notes(root, kept) == []
    freshness._notes.cache_clear()
    DAMAGES[damage](kept / changes.FILE)
    (notes,) = freshness._notes(root, kept)
    assert notes.endswith(f"so it is unknown whether {root} has changed")
    assert "\n" not in notes


def test_an_added_file_is_noticed_whatever_its_suffix(tmp_path):
    """The user's own source may read files that no built-in source takes for images."""
    root, kept = tmp_path / "arrays", tmp_path / changes.FILE
    root.mkdir()
    (root / "0.npy").write_bytes(b"0")
    found = tree(root, endings={".npy"})
    listing = Listing(
        classes=("a",),
        splits={"all": [Item("0.npy", 0)]},
        facts=array("q", found.images[0][1:]),
        folders=found.folders,
    )
    changes.save(listing, kept)
    os.utime(root, ns=(0, 0))  # the folder's time differs from the saved one
    (root / "1.npy").write_bytes(b"1")
    assert str(changes.compare(root, kept, 10)) == "1 added"
