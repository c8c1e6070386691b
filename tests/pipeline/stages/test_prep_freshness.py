"""Test that `prep` and a launch notice changes of the images since they were prepared."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from pipeline.data.sources import changes
from pipeline.display.errors import UserError
from pipeline.planning import freshness
from tests.pipeline.data.preparing import encoded, folder, picture, prepared

pytestmark = pytest.mark.long


def test_files_replaced_under_the_same_names_are_read_again(tmp_path, images):
    for number in (3, 4):
        (images / "cat" / f"00{number}.jpg").write_bytes(b"")
    made = prepared(tmp_path, images, shard_images=4)
    with pytest.raises(UserError, match="2 of 16 images are bad"):
        made.run()
    for number in range(8):  # the two bad images, and good ones of finished shards
        (images / "cat" / f"00{number}.jpg").write_bytes(encoded(picture(50 + number)))
    fresh = prepared(tmp_path, images, "fresh", shard_images=4).run()
    assert made.run().files() == fresh.files()


def test_prepared_data_of_other_files_is_set_aside(tmp_path, images):
    made = prepared(tmp_path, images).run()
    before = made.files()
    assert made.run().files() == before and not list(made.folder.parent.glob("*.before-*"))
    (images / "cat" / "000.jpg").write_bytes(encoded(picture(99)))
    assert made.run().files() != before
    kept = made.folder.parent / "abc.before-1" / "manifest.json"
    assert kept.read_bytes() == before["manifest.json"]
    (made.folder / "manifest.json").write_text("{")  # a damaged manifest makes the data useless
    assert made.run().files()["manifest.json"] != before["manifest.json"]
    assert (made.folder.parent / "abc.before-2").is_dir()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "train-00000.tar").unlink(),
        lambda folder: (folder / "train-00000.tar").write_bytes(b""),
        lambda folder: (folder / "val-00000.tar").rename(folder / "train-00000.tar"),
        lambda folder: (folder / "train-00000.idx").unlink(),
        lambda folder: (folder / "remarks.jsonl").unlink(),
        lambda folder: (folder / "source.gz").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
def test_prepared_data_that_lost_a_file_is_prepared_again(tmp_path, images, spoil):
    """After `rm -r` of the stage, which messages advise, a launch runs the stage on the same data."""
    made = prepared(tmp_path, images).run()
    before = made.files()
    spoil(made.folder)
    assert made.run().files() == before
    assert (made.folder.parent / "abc.before-1").is_dir()


def changes_of(made, images, seconds=60.0):
    return changes.compare(images, made.folder / changes.FILE, seconds)


def test_added_removed_and_changed_files_are_counted(tmp_path, images):
    (images / "loose.jpg").write_bytes(b"")
    made = prepared(tmp_path, images).run()
    assert not str(changes_of(made, images))
    (images / "cat" / "Thumbs.db").touch()
    (images / "cat" / ".hidden.jpg").touch()
    assert not str(changes_of(made, images))
    for name in ("cat/new.jpg", "dog/deep/down.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        shutil.copy(images / "cat" / "000.jpg", images / name)
    folder(images, ("fox",), images=3)
    (images / "cat" / "001.jpg").unlink()
    with (images / "dog" / "002.jpg").open("ab") as file:
        file.write(b"more")
    os.utime(images / "dog" / "003.jpg", (0, 1))
    assert str(changes_of(made, images)) == "5 added, 1 removed, 2 changed"
    in_no_time = changes_of(made, images, seconds=0.0)
    assert (in_no_time.unseen, in_no_time.files) == (16, 16)
    shutil.rmtree(images / "dog")
    assert str(changes_of(made, images)) == "4 added, 9 removed"


@pytest.mark.parametrize("change", ["nothing", "a file more", "no time", "no record", "no root"])
def test_a_launch_notes_images_that_changed_since_prep(
    tmp_path, images, capsys, monkeypatch, change
):
    made = prepared(tmp_path, images).run()
    words = {
        "nothing": "", "a file more": f"data.root={images} has changed since it was prepared: 1 added; ",
        "no time": "16 of 16 files below", "no record": "of an older version, so it is unknown",
        "no root": "is not there, so it is unknown",
    }[change]  # fmt: skip
    if change == "a file more":
        shutil.copy(images / "cat" / "000.jpg", images / "cat" / "new.jpg")
    elif change == "no time":
        monkeypatch.setattr(freshness, "PATIENCE", 0.0)
    elif change == "no record":
        (made.folder / changes.FILE).unlink()
    elif change == "no root":
        images.rename(tmp_path / "away")
    step = SimpleNamespace(
        state="done", repeats=False, wanted=True, dir=made.dir, fingerprint="abc"
    )
    capsys.readouterr()
    freshness.note_changes(made.context.config, step, ["name=x", "dry_run=true"])
    output = capsys.readouterr().out
    assert words in output and output.count("\n") == bool(words)
    assert not words or "python -m pipeline.launch name=x 'again=[prep]'" in output


def test_the_manifest_lists_read_and_ignored_files(tmp_path, images):
    (images / "dog" / "notes.txt").touch()
    (images / "@eaDir").mkdir()
    made = prepared(tmp_path, images).run()
    assert made.manifest.source.keys() == {"files", "bytes", "sha256"}
    assert made.manifest.source["files"] == 16
    assert made.manifest.passed_over == made.metrics["ignored_files"] == 2
    rows = [json.loads(line) for line in (made.folder / "passed_over.jsonl").open()]
    assert [row["name"] for row in rows] == ["@eaDir/", "dog/notes.txt"]
    assert "no image by its name" in (made.dir / "data.html").read_text()
